"""python -m serving: checks that the service can start, then becomes `bentoml serve`."""

import logging
import os
import sys
from pathlib import Path

from serving.champion import fetch
from serving.errors import StartError
from serving.port import check_port
from serving.settings import load_settings


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        settings = load_settings()
        check_port(settings.host, settings.port, "PORT")
        fetch(settings)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    bentoml = Path(sys.executable).with_name("bentoml")
    address = ["--host", settings.host, "--port", str(settings.port)]
    os.execv(bentoml, [str(bentoml), "serve", "serving.service:Classifier", *address])


if __name__ == "__main__":
    main()
