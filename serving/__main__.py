"""python -m serving: loads the model and serves it, until SIGTERM or Ctrl-C."""

import logging
import signal
import sys

import uvicorn

from serving.model.errors import exit_in_words
from serving.model.store import ModelStore
from serving.port import listen
from serving.settings import load_settings


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("bentoml.serving").setLevel(logging.INFO)
    with exit_in_words():
        settings = load_settings()
        listener = listen(settings.host, settings.port, "PORT")
        predictor = ModelStore(settings.model, settings.state_dir, settings.providers).load()
    # BentoML's import takes a second, which a wrong setting need not wait for.
    from serving.online.app import create_application

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all is answered
    # One process: whatever ends it, nothing is left that holds the port.
    config = uvicorn.Config(create_application(settings, predictor), log_config=None, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
