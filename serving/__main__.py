"""python -m serving: checks that the service can start, then becomes `bentoml serve`."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from serving.errors import StartError
from serving.port import check_port
from serving.predictor import fetch
from serving.settings import Settings


def main() -> None:
    try:
        settings = Settings()
        check_port(settings.host, settings.port, "PORT")
        fetch(settings.model, settings.state_dir)
    except ValidationError as error:
        problems = "; ".join(f"SERVING_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        _exit(problems)
    except StartError as error:
        _exit(str(error))
    bentoml = Path(sys.executable).with_name("bentoml")
    address = ["--host", settings.host, "--port", str(settings.port)]
    os.execv(bentoml, [str(bentoml), "serve", "serving.service:Classifier", *address])


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
