"""What a search came to: its trials in a table and in a picture, and the best one's settings as an experiment."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from omegaconf import OmegaConf

from training.config import CONFIG_DIR, compose, understood
from training.pages.plots import COLORS, STYLE, shortened
from training.search.space import Range, Space, choices, words
from training.search.study import REASON
from training.settings import TrainSettings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

GROUPS = {path.name for path in Path(CONFIG_DIR).iterdir() if path.is_dir()}


def best(trials: "Sequence[FrozenTrial]") -> "FrozenTrial | None":
    """The trial with the best validation accuracy, of equal ones the first; None where none was trained to its end."""
    return max(ended(trials, "COMPLETE"), key=lambda trial: trial.value or 0, default=None)


def ended(trials: "Sequence[FrozenTrial]", state: str) -> "list[FrozenTrial]":
    return [trial for trial in trials if trial.state.name == state]


def table(trials: "Sequence[FrozenTrial]") -> list[dict[str, Any]]:
    """A row a trial: its values, its best validation accuracy, and what became of it."""
    rows = []
    for trial in trials:
        accuracies = trial.intermediate_values.values()
        remark = {"PRUNED": f"pruned after epoch {trial.last_step}", "FAIL": trial.user_attrs.get(REASON, "")}
        rows.append(
            {
                "trial": trial.number,
                "validation accuracy": f"{max(accuracies):.2%}" if accuracies else "",
                **{key: f"{value:.3g}" if isinstance(value, float) else value for key, value in trial.params.items()},
                "remark": "the best" if trial is best(trials) else remark.get(trial.state.name, ""),
            }
        )
    return rows


@rc_context(STYLE)
def figure(trials: "Sequence[FrozenTrial]", space: Space) -> Figure:
    """Validation accuracy by the trials in their order, and by the values of each parameter."""
    columns = 2
    rows = math.ceil((1 + len(space)) / columns)
    plot = Figure(figsize=(9, 2.8 * rows), layout="constrained")
    panels = plot.subplots(rows, columns, sharey=True, squeeze=False).flat
    for name, axes in zip(["trial", *space], panels, strict=False):
        parameter = space.get(name)
        texts = [str(value) for value in choices(parameter)] if isinstance(parameter, list) else None
        for state, marker, color in (("PRUNED", "x", "rest"), ("COMPLETE", "o", "accent")):
            shown = [trial for trial in ended(trials, state) if trial.intermediate_values]
            values = [trial.number if name == "trial" else trial.params[name] for trial in shown]
            places = [texts.index(str(value)) for value in values] if texts else values
            heights = [max(trial.intermediate_values.values()) for trial in shown]
            label = {"PRUNED": "pruned", "COMPLETE": "trained to the end"}[state]
            axes.scatter(places, heights, marker=marker, color=COLORS[color], label=label)
        axes.set(xlabel=name)
        if texts:
            axes.set_xticks(range(len(texts)), [shortened(text) for text in texts])
            axes.set_xlim(-0.5, len(texts) - 0.5)
        elif name == "trial":
            axes.set(ylabel="validation accuracy")
            axes.xaxis.get_major_locator().set_params(integer=True)
            plot.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        elif isinstance(parameter, Range) and parameter.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:g}")  # its own is for a parser of formulas
            axes.minorticks_off()
    for axes in list(panels):
        axes.set_visible(False)
    return plot


def experiment_yaml(experiment: str, overrides: Sequence[str], values: dict[str, Any], says: str) -> str:
    """An experiment of what differs from another one in how is trained; not on which pictures, with which seed.

    Args:
        experiment: the other one.
        overrides: Hydra's, with which the search was asked for.
        values: the best trial's, by Hydra's key.
        says: a sentence on the search.
    """
    before, after = (compose([f"experiment={experiment}", *more]) for more in ([], [*overrides, *words(values)]))
    changes = OmegaConf.create()
    defaults: list[Any] = [experiment]
    settings = after.model_dump(mode="json")
    groups: dict[str, str] = {}
    for each in understood([*overrides, *words(values)], TrainSettings):
        key, _, value = each.partition("=")
        if key in GROUPS - {"data", "experiment"}:
            groups[f"override /{key}"] = value
        elif key.lstrip("+").partition(".")[0] in ("model", "transforms", "trainer"):
            OmegaConf.update(changes, key.lstrip("+"), _value(settings, key.lstrip("+")))
    defaults += [{key: value} for key, value in groups.items()]
    # An experiment's answer to few pictures gives way to a command line, but not to another experiment.
    if after.small_data != before.small_data:
        changes.small_data = settings["small_data"]
    if after.trainer.min_steps != before.trainer.min_steps:
        OmegaConf.update(changes, "trainer.min_steps", after.trainer.min_steps)
    return f"# @package _global_\n# {says}\n{OmegaConf.to_yaml(OmegaConf.merge({'defaults': defaults}, changes))}"


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name]
    return settings
