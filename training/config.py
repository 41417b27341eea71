"""From Hydra's files and overrides to validated settings, in clear words where that fails."""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
import timm
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from serving.model.errors import UserError, exit_in_words, first_line
from training.model.backbones import own_settings
from training.settings import Settings, Text, TrainSettings
from training.tracking import state_dir

log = logging.getLogger(__name__)

CONFIG_DIR = str(Path(__file__).with_name("conf"))
MODELS = {path.stem for path in Path(CONFIG_DIR, "model").glob("*.yaml")}  # those with a file of their own
S = TypeVar("S", bound=Settings)


def compose(overrides: Sequence[str]) -> TrainSettings:
    """Composes conf/config.yaml with Hydra overrides, as the command line does; raises UserError where one is wrong."""
    GlobalHydra.instance().clear()  # a command that Hydra itself started may compose further configurations
    words = understood(overrides, TrainSettings)
    with _explained(), hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return validated(hydra.compose("config", words), TrainSettings, words)


def hydra_command(run: Callable[[S], None], settings: type[S], config_name: str) -> None:
    """Runs a function as a Hydra command line; an error that the user can mend ends it with exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print its own errors and exit with 1
    sys.argv[1:] = words = understood(sys.argv[1:], settings)
    # By way of what has to be closed, such as the run in MLflow.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    @hydra.main(CONFIG_DIR, config_name, "1.3")
    def job(config: DictConfig) -> None:
        with exit_in_words(), _explained():  # in here already, or Hydra prints a line of its own first
            run(validated(config, settings, words))

    with exit_in_words(), _explained():
        job()


def validated(config: DictConfig, settings: type[S], words: Sequence[str]) -> S:
    """The configuration as settings; UserError where a value is missing, of the wrong type, or out of its range.

    Args:
        words: the command line that it was composed with.
    """
    if "model" in config:
        _fill_in_the_model_s_own(config.model, words)
        _let_the_command_line_win(config, words)
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


def _fill_in_the_model_s_own(model: DictConfig, words: Sequence[str]) -> None:
    """Sets what is null to what timm's model was made for.

    Where that is pictures of one size only, an experiment's `image_size` gives way to it; one of the command line is
    handed to timm, which can build some of these models for another size.
    """
    options = model.get("backbone_options")
    if not timm.is_model(model.get("backbone") or "") or not isinstance(options, DictConfig):
        return
    own = own_settings(model.backbone)
    asked = any(word.startswith("model.image_size=") for word in words)
    chosen = "img_size" in options
    if chosen and model.image_size is None:
        model.image_size = options.img_size
    if own.fixed_size and not asked and not chosen and model.image_size not in (None, own.image_size):
        log.info("%s takes pictures of %d pixels, not of %s", model.backbone, own.image_size, model.image_size)
        model.image_size = None
    for key in ("image_size", "mean", "std", "interpolation"):
        if model.get(key) is None:
            model[key] = getattr(own, key)
    if own.fixed_size and not chosen and model.image_size != own.image_size:
        with open_dict(options):
            options.img_size = model.image_size


def _let_the_command_line_win(config: DictConfig, words: Sequence[str]) -> None:
    """Takes out of an experiment's answer to few pictures what was given."""
    given = {word.partition("=")[0] for word in words}
    for entry in config.small_data if isinstance(config.small_data, ListConfig) else ():
        if "model.image_size" in given and "image_size" in entry:
            entry.image_size = None
        if changes := entry.get("trainer"):
            with open_dict(changes):
                for key in [key for key in changes if f"trainer.{key}" in given]:
                    del changes[key]
    if "trainer.epochs" in given and "trainer.min_steps" not in given:
        config.trainer.min_steps = None


def understood(words: Sequence[str], settings: type[Settings]) -> list[str]:
    """A command line as Hydra takes it: texts and paths as they stand, and timm's models by their names alone.

    Experiments are also those that searches have written into the state directory. Of several models the last counts.
    """
    understood = []
    if any(word.startswith("experiment=") for word in words) and (state_dir() / "experiment").is_dir():
        found = QuotedString(f"file://{state_dir().absolute()}", Quote.single).with_quotes()
        understood.append(f"hydra.searchpath=[{found}]")
    for index, word in enumerate(words):
        key, _, value = word.partition("=")
        if key == "model" and any(later.startswith("model=") for later in words[index + 1 :]):
            continue
        if key == "model" and value not in MODELS and timm.is_model(value):
            understood += ["model=timm", f"model.backbone={value}"]
        else:
            understood.append(literal(word, settings))
    return understood


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
        chosen = re.sub(r".*Could not find '(\w+)/(.*)'", r"\1=\2: there is no such \1", lines[0])
        return f"{chosen}\nChoose one of: {', '.join(sorted(options))}"
    if error.__cause__ and lines[0].startswith("Error merging override"):
        lines[0] += f": {first_line(error.__cause__)}"
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{first}\nThe keys are in training/conf/; --help lists them with their defaults."
