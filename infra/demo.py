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

from flows.arguments import run_command
from flows.retrain import data_overrides, retrain
from serving.model.errors import UserError, first_line
from serving.model.registry import registered_name
from serving.port import check_port
from serving.running import running
from serving.settings import load_settings
from training.config import compose
from training.data import sources
from training.data.split import load_data
from training.release import registry

console = Console(soft_wrap=True)


def demo(data: str = "") -> None:
    """Trains, registers, serves and asks once.

    Args:
        data: a folder or an archive of pictures, cifar10 or digits; empty: cifar10, or digits where that can't be had.
    """
    settings = load_settings()
    if not shutil.which("curl"):
        raise UserError("curl is not installed; the demo asks the service with it")
    check_port(settings.host, settings.port, "PORT")
    data = data or downloaded_or_digits(settings.state_dir)
    if registry.champion(registered_name()):
        console.print("A champion of other classes is replaced, so that make serve answers with what is shown here.")
    retrain(data=data, replace_classes=True)
    picture, label = write_test_picture(data, settings.state_dir / "demo")
    url = f"http://{settings.host}:{settings.port}"
    with running(url, settings.state_dir / "demo" / "service.log", {}):
        quietly = ("--silent", "--show-error", "--fail-with-body")
        command = ["curl", *quietly, "--form", f"image=@{picture}", f"{url}/classify"]
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
        return "cifar10"
    except UserError as error:
        reason = first_line(error)
        console.print(f"{reason} Going on with scikit-learn's handwritten digits instead.", style="yellow")
        return "digits"


def write_test_picture(data: str, directory: Path) -> tuple[Path, str]:
    """Writes the first test picture as a PNG file; returns its path and its label."""
    settings = compose([*data_overrides(data), "experiment=quick"])
    pictures = load_data(settings.data, settings.seed, settings.model.decoding)
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
    run_command(demo, "python -m infra.demo data=PATH")
