"""The composed configuration, and clear words where it can't be composed."""

import os
from collections.abc import Callable, Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from training.errors import UserError, exit_on_user_error

CONFIG_DIR = "conf"


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Composes `training/conf` with Hydra overrides, as the command line would.

    Raises:
        UserError: an override names a key, a group or an option that does not exist, or a value of the wrong form.
    """
    try:
        with hydra.initialize(CONFIG_DIR, version_base="1.3"):
            return hydra.compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from error


def hydra_command(run: Callable[[DictConfig], None]) -> None:
    """Runs a function as a Hydra command line; what the user can mend ends it with exit code 2."""
    # Hydra would print its own errors and exit with 1; this makes it raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_on_user_error():
        try:
            hydra.main(CONFIG_DIR, "config", "1.3")(run)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error)) from error


def _explain(error: Exception) -> str:
    """The lines of Hydra's message that matter to a user: the first, and the options where it lists them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    options = [line for line in lines if line.startswith("Available options")]
    if options:
        names = [line for line in lines[lines.index(options[0]) + 1 :] if not line.startswith("Config search path")]
        choices = ", ".join(name for name in names if "provider=" not in name and name != "base")
        return f"{lines[0]}\nChoose one of: {choices}"
    return f"{lines[0]}\nThe keys are in training/conf/; python -m training.train --cfg job prints them all."
