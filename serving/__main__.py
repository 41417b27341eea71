"""python -m serving: checks that the service can start, then becomes `bentoml serve`."""

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from serving.champion import fetch
from serving.errors import StartError
from serving.port import check_port
from serving.settings import Settings


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        settings = Settings()
        check_port(settings.host, settings.port, "PORT")
        fetch(settings)
    except ValidationError as error:
        _exit("; ".join(_problem(part["loc"], part["msg"]) for part in error.errors()))
    except StartError as error:
        _exit(str(error))
    bentoml = Path(sys.executable).with_name("bentoml")
    address = ["--host", settings.host, "--port", str(settings.port)]
    os.execv(bentoml, [str(bentoml), "serve", "serving.service:Classifier", *address])


def _problem(location: tuple[int | str, ...], message: str) -> str:
    name = "_".join(map(str, location[:1])).upper()
    return f"SERVING_{name}: {message}" if name else message


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
