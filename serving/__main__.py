"""python -m serving: loads the model and serves it, until SIGTERM or Ctrl-C.

Where the registry has no champion yet, or does not answer, it waits for one, and is not ready meanwhile.
"""

import logging
import signal
import sys
from math import ceil

import uvicorn

from serving.model.errors import exit_in_words
from serving.model.store import ModelStore
from serving.port import listen
from serving.protocol import WithoutUpgrades
from serving.settings import load_settings


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when all is answered
        signal.signal(number, lambda *_: sys.exit(0))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("bentoml.serving").setLevel(logging.INFO)
    with exit_in_words():
        settings = load_settings()
        listeners = listen(settings.host, settings.port, "PORT")
        store = ModelStore(settings.model, settings.state_dir, settings.providers, settings.precision)
        try:
            predictor = store.load()
        except Exception as error:
            if not store.may_come(error):
                raise
            predictor = None
    # BentoML's import takes a second, which a wrong setting need not wait for.
    from serving.online.app import create_application

    # One process: whatever ends it, nothing is left that holds the port.
    config = uvicorn.Config(
        create_application(settings, predictor),
        http=WithoutUpgrades,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=ceil(settings.max_seconds) + 5,  # for answers, not for uploads that take an hour
    )
    uvicorn.Server(config).run(sockets=listeners)


if __name__ == "__main__":
    main()
