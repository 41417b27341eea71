"""The space of a search: what is tried of each parameter. conf/search/default.yaml shows its form."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError, model_validator

from serving.model.errors import UserError, WeightsError
from training.config import CONFIG_DIR, compose
from training.loop.small_data import suited
from training.loop.trainable import check_trainable
from training.settings import Settings, TrainSettings
from training.train import try_out

GROUPS = ("model", "transforms", "trainer")  # the rest decides what accuracies are of
WEIGHTS = ("model", "model.backbone", "model.weights")  # what decides from which ones a trial starts


class Range(Settings):
    """Numbers from `low` to `high`, whole ones where both are; `log` where their order of magnitude counts."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _is_one(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low={self.low} should be less than high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} should be greater than 0 with log=true")
        return self


Space = dict[str, list[Any] | Range]  # by Hydra's key


def read_space(name: str) -> Space:
    """That of the name in conf/search, or of a YAML file; UserError where it has not the form of one."""
    files = {path.stem: path for path in Path(CONFIG_DIR, "search").glob("*.yaml")}
    path = files.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"space={name}: there is no such space\nChoose one of: {', '.join(sorted(files))}; or a file.")
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's and OmegaConf's own
        raise UserError(f"space={name} can't be read ({' '.join(str(error).split()):.200})") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"space={name} has no parameters; give a line each, such as trainer.frozen_stages: [0, 2, 3]")
    return {str(key): _parameter(name, str(key), value) for key, value in found.items()}


def _parameter(space: str, key: str, value: Any) -> list[Any] | Range:
    if key.partition(".")[0] not in GROUPS:
        raise UserError(f"space={space}: {key} is not searched; a parameter is one of {', '.join(GROUPS)}")
    try:
        if isinstance(value, dict):
            return Range.model_validate(value)
        if isinstance(value, list) and value:
            return value
        raise ValueError("give a list of values, or a range {low: NUMBER, high: NUMBER}")
    except ValidationError as errors:
        error: Any = errors.errors()[0]
        where = ".".join(map(str, (key, *error["loc"])))
        raise UserError(f"space={space}: {where}: {error['msg'].removeprefix('Value error, ')}") from errors
    except ValueError as error:
        raise UserError(f"space={space}: {key}: {error}") from error


def as_json(space: Space) -> dict[str, Any]:
    return {
        key: parameter.model_dump() if isinstance(parameter, Range) else parameter for key, parameter in space.items()
    }


def check_trial(settings: TrainSettings) -> None:
    """What `check_trainable` does, for a training that is one of many: it has one process."""
    check_trainable(settings)
    if (processes := settings.trainer.processes) != 1:
        raise UserError(f"trainer.processes={processes}: a trial is trained in one process; leave it out")


def check_space(
    name: str, space: Space, overrides: Sequence[str], check: Callable[[TrainSettings], object] = check_trial
) -> None:
    """Raises UserError, or what `check` raises in words, where a parameter or a value of it would be refused."""
    for key, parameter in space.items():
        values = [parameter.low, parameter.high] if isinstance(parameter, Range) else parameter
        for value in values:
            try:
                check(compose([*overrides, word(key, value)]))
            except (UserError, WeightsError) as error:
                first, *rest = str(error).splitlines()
                raise type(error)("\n".join([f"space={name}: {key}: {first}", *rest])) from error


def try_space(name: str, space: Space, overrides: Sequence[str], pictures: int) -> None:
    """The same for a training of so many pictures; fetches the weights of each model and trains it on one batch."""
    check_space(name, space, overrides, lambda settings: check_trial(suited(settings, pictures)))
    check_space(name, {key: space[key] for key in WEIGHTS if key in space}, overrides, try_out)


def word(key: str, value: Any) -> str:
    """A value as Hydra's command line takes it."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def words(values: Mapping[str, Any]) -> list[str]:
    return [word(key, value) for key, value in values.items()]


def choices(values: Iterable[Any]) -> list[Any]:
    """What Optuna is to choose of: a list or a dict as Hydra's text of it."""
    return [json.dumps(value) if isinstance(value, list | dict) else value for value in values]


def own_values(space: Space, settings: TrainSettings) -> dict[str, Any]:
    """The settings' own values of those parameters whose space they lie in."""
    found = {}
    for key, parameter in space.items():
        value: Any = settings.model_dump(mode="json")
        for name in ["model", "name"] if key == "model" else key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(parameter, Range):
            number = int if parameter.is_whole else int | float
            within = isinstance(value, number) and parameter.low <= value <= parameter.high
        else:
            (value,) = choices([value])
            within = value in choices(parameter)
        if within:
            found[key] = value
    return found
