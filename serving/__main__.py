"""python -m serving: checks that the service can start, then becomes `bentoml serve`."""

import logging
import os
import sys
from pathlib import Path

from serving.model.errors import exit_in_words
from serving.model.store import ModelStore
from serving.port import check_port
from serving.settings import load_settings


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with exit_in_words():
        settings = load_settings()
        check_port(settings.host, settings.port, "PORT")
        ModelStore(settings.model, settings.state_dir, settings.providers).load()
    bentoml = Path(sys.executable).with_name("bentoml")
    address = ["--host", settings.host, "--port", str(settings.port)]
    os.execv(bentoml, [str(bentoml), "serve", "serving.online.service:Classifier", *address])


if __name__ == "__main__":
    main()
