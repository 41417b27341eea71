"""The whole stack once: train, register, serve, ask. `make demo` runs it."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from PIL import Image
from rich.console import Console

from flows.failures import start_errors_in_words
from flows.retrain import data_overrides, retrain
from serving.port import check_port
from serving.process import running
from serving.settings import Settings, load_settings
from training import sources
from training.config import compose_config
from training.data import load_data
from training.errors import UserError, exit_on_user_error

console = Console(soft_wrap=True)


def demo(data: str, settings: Settings) -> None:
    """Retrains on `data` (empty: CIFAR-10, or the stand-in where it can't be had) and asks the service."""
    if not shutil.which("curl"):
        raise UserError("curl is not installed; the demo asks the service with it")
    check_port(settings.host, settings.port, "PORT")
    data = data or downloaded_or_digits(settings.state_dir)
    retrain(data=data)
    picture, label = write_test_picture(data, settings.state_dir / "demo")
    url = f"http://{settings.host}:{settings.port}"
    with running(url, settings.state_dir / "demo" / "service.log", {}):
        command = [
            "curl",
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--form",
            f"image=@{picture}",
            f"{url}/classify",
        ]
        console.rule("the service answers")
        console.print("$", shlex.join(command), highlight=False, markup=False)
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    console.print_json(answer)
    model = json.loads(answer)["model"]
    console.print(f"The picture shows: {label}. The answer came from {model['name']} version {model['version']},")
    console.print(f"trained on {model['data']}. The service has been stopped; next:")
    console.print(f"  make serve    the page {url}/ui and {url}/classify until Ctrl-C")
    console.print("  make mlflow   the runs, their plots and the registry")
    console.print("  make prefect  the flow run that was just recorded")


def downloaded_or_digits(state_dir: Path) -> str:
    """`cifar10` where it can be downloaded, else `digits`, saying so."""
    try:
        next(sources.cifar10(str(state_dir / "downloads")))
    except UserError as error:
        reason = str(error).splitlines()[0]
        console.print(f"{reason} Going on with scikit-learn's handwritten digits instead.", style="yellow")
        return "digits"
    return "cifar10"


def write_test_picture(data: str, directory: Path) -> tuple[Path, str]:
    """Writes the first test picture as a PNG file; returns its path and its label."""
    config = compose_config([*data_overrides(data), "experiment=quick"])
    pictures = load_data(config.data, config.seed)
    directory.mkdir(parents=True, exist_ok=True)
    label = pictures.classes[pictures.test.labels[0]]
    path = directory / "picture.png"
    Image.fromarray(pictures.test[0]).save(path)
    return path, label


def stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Ends the program by way of what has to be cleaned up, such as the service."""
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with exit_on_user_error(), start_errors_in_words():
        demo(sys.argv[1] if len(sys.argv) > 1 else "", load_settings())
