"""From Hydra's files and overrides to validated settings, in clear words where that fails."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from serving.model.errors import UserError, exit_in_words
from training.settings import Settings, Text, TrainSettings

CONFIG_DIR = str(Path(__file__).with_name("conf"))
S = TypeVar("S", bound=Settings)


def compose(overrides: Sequence[str]) -> TrainSettings:
    """Composes conf/config.yaml with Hydra overrides, as the command line does; raises UserError where one is wrong."""
    GlobalHydra.instance().clear()  # a command that Hydra itself started may compose further configurations
    with _explained(), hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = hydra.compose("config", [literal(override, TrainSettings) for override in overrides])
        return validated(config, TrainSettings)


def hydra_command(run: Callable[[S], None], settings: type[S], config_name: str) -> None:
    """Runs a function as a Hydra command line; an error that the user can mend ends it with exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print its own errors and exit with 1
    sys.argv[1:] = [literal(word, settings) for word in sys.argv[1:]]

    @hydra.main(CONFIG_DIR, config_name, "1.3")
    def job(config: DictConfig) -> None:
        with exit_in_words(), _explained():  # in here already, or Hydra prints a line of its own first
            run(validated(config, settings))

    with exit_in_words(), _explained():
        job()


def validated(config: DictConfig, settings: type[S]) -> S:
    """The configuration as settings; UserError where a value is missing, of the wrong type, or out of its range."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"no value for {', '.join(missing)}; give {missing[0]}=VALUE")
    try:
        return settings.model_validate(OmegaConf.to_container(config, resolve=True))
    except ValidationError as errors:
        error: Any = errors.errors()[0]
        key, value = ".".join(map(str, error["loc"])), error["input"]
        reason = re.sub("^(Value error,|Input|String|List) |^Extra inputs are ", "", error["msg"])
        # What Hydra instantiates is named by the reason, with the key inside of it that is wrong.
        raise UserError(f"{key}.{reason}" if isinstance(value, dict) else f"{key}={value}: {reason}") from errors


def literal(word: str, settings: type[Settings]) -> str:
    """Quotes the value of `key=value` for Hydra where the key is a text or a path, so that it is taken as it stands."""
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in _text_keys(settings):
        return word
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # OmegaConf would look a reference up
    return f"{key}={QuotedString(escaped, Quote.single).with_quotes()}"


def _text_keys(settings: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _text_keys(kind, f"{prefix}{name}.")
        elif kind in (str, Path, Text | None):
            yield prefix + name


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise into a UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explanation(error)) from error


def _explanation(error: Exception) -> str:
    """The lines of Hydra's message that matter to a user, with the options where it lists them."""
    if found := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"no value for {found[1]}; give {found[1]}=VALUE"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if options := set(re.findall(r"^\t(\w+)$", str(error), re.MULTILINE)) - {"base"}:
        return f"{lines[0]}\nChoose one of: {', '.join(sorted(options))}"
    if error.__cause__ and lines[0].startswith("Error merging override"):
        lines[0] += f": {str(error.__cause__).splitlines()[0]}"
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{first}\nThe keys are in training/conf/; --help lists them with their defaults."
