"""The composed configuration, and clear words where it can't be composed."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from training.errors import UserError, exit_on_user_error

CONFIG_DIR = str(Path(__file__).with_name("conf"))


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Composes `training/conf` with Hydra overrides, as the command line would.

    Raises:
        UserError: an override names a key, a group or an option that does not exist, or a value of the wrong form.
    """
    GlobalHydra.instance().clear()  # a command that Hydra itself started may compose further configurations
    with _explained(), hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return hydra.compose("config", list(overrides))


def hydra_command(run: Callable[[DictConfig], None], config_name: str = "config") -> None:
    """Runs a function as a Hydra command line; what the user can mend ends it with exit code 2."""
    # Hydra would print its own errors and exit with 1; this makes it raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    @hydra.main(CONFIG_DIR, config_name, "1.3")
    def job(config: DictConfig) -> None:
        with exit_on_user_error(), _explained():  # in here already, or Hydra prints a line of its own first
            run(config)

    with exit_on_user_error(), _explained():
        job()


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise into a UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explanation(error)) from error


def _explanation(error: Exception) -> str:
    """The lines of Hydra's message that matter to a user, with the options where it lists them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    options = [line for line in lines if line.startswith("Available options")]
    if options:
        names = [line for line in lines[lines.index(options[0]) + 1 :] if not line.startswith("Config search path")]
        choices = ", ".join(name for name in names if "provider=" not in name and name != "base")
        return f"{lines[0]}\nChoose one of: {choices}"
    if error.__cause__ and lines[0].startswith("Error merging override"):
        lines[0] += f": {str(error.__cause__).splitlines()[0]}"
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{first}\nThe keys are in training/conf/; python -m training.train --cfg job prints them all."
