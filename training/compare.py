"""Models by experiments, in one table: python -m training.compare models=[resnet18] experiments=[frozen,unfrozen]

A combination whose run is finished is not trained again, so the matrix goes on where it was stopped. One that fails is
a row with its reason.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from training import tracking
from training.config import compose, hydra_command
from training.loop.candidates import none_left, reason, train_each
from training.pages.page import write_whole
from training.pages.plots import COLORS, STYLE, svg
from training.settings import CompareSettings
from training.train import finished_run, train, try_out

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """A row of the table; accuracy, precision, recall, F1 and reference are shares in [0, 1]."""

    model: str
    experiment: str
    accuracy: float
    precision: float
    recall: float
    f1: float
    minutes: float
    images_per_second: float
    reference: float | None


def main(settings: CompareSettings) -> None:
    """Runs what is left of the matrix and writes the table as Markdown and as a picture."""
    # All are composed first: a mistake in the last is refused before the first is trained.
    runs = {
        named(model, experiment): compose([f"experiment={experiment}", f"model={model}", *settings.overrides])
        for model in settings.models
        for experiment in settings.experiments
    }
    results: list[Result] = []

    def train_one(name: str) -> str:
        run, (model, experiment) = runs[name], name.split(", ")
        run_id = finished_run(run) or train(run)
        published = settings.published.get(model, {}).get(experiment) if run.data.name == "cifar10" else None
        results.append(result(run_id, model, experiment, published))
        write_whole(_with(settings.report, ".md"), markdown(results, {}).encode())
        write_whole(_with(settings.report, ".svg"), svg(figure(results)).encode())
        return run_id

    def try_one(name: str) -> None:
        if not finished_run(runs[name]):
            try_out(runs[name])

    _, failures = train_each(runs, try_one, lambda name: partial(train_one, name))
    write_whole(_with(settings.report, ".md"), markdown(results, failures).encode())
    if not results:
        raise none_left(failures)
    print(markdown(results, failures))
    log.info("written to %s.md and %s.svg", settings.report, settings.report)


def named(model: str, experiment: str) -> str:
    return f"{model}, {experiment}"


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def result(run_id: str, model: str, experiment: str, published: float | None) -> Result:
    """The row of a finished run."""
    metrics = tracking.connect().get_run(run_id).data.metrics
    seconds, speeds = (tracking.history(run_id, name) for name in ("train_seconds", "images_per_second"))
    pictures = sum(speeds[epoch] * seconds[epoch] for epoch in seconds)
    # A frozen backbone's features are computed once, before the first epoch.
    total = sum(seconds.values()) + metrics.get("feature_seconds", 0)
    accuracy, precision, recall, f1 = (metrics[f"test_{name}"] for name in ("accuracy", "precision", "recall", "f1"))
    return Result(model, experiment, accuracy, precision, recall, f1, total / 60, pictures / total, published)


def markdown(results: Sequence[Result], failures: Mapping[str, Exception]) -> str:
    """The table: the results, then what failed, by its name, with the reason."""
    lines = ["| " + " | ".join(Result._fields).replace("_", " ") + " |", "| --- " * len(Result._fields) + "|"]
    for row in results:
        shares = [f"{share:.2%}" for share in (row.accuracy, row.precision, row.recall, row.f1)]
        reference = f"{row.reference:.2%}" if row.reference else ""
        cells = [row.model, row.experiment, *shares, f"{row.minutes:.1f}", f"{row.images_per_second:.0f}", reference]
        lines.append("| " + " | ".join(cells) + " |")
    for name, error in failures.items():
        cells = [*name.split(", "), f"failed: {reason(error)}".replace("|", "\\|")]
        lines.append("| " + " | ".join(cells + [""] * (len(Result._fields) - len(cells))) + " |")
    return "\n".join(lines) + "\n"


@rc_context(STYLE)
def figure(results: Sequence[Result]) -> Figure:
    """Test accuracies as bars, the published ones as marks."""
    plot = Figure(figsize=(8, 1 + 0.45 * len(results)), layout="constrained")
    axes = plot.subplots()
    names = [named(row.model, row.experiment) for row in results]
    bars = axes.barh(names, [row.accuracy for row in results], color=COLORS["accent"])
    axes.bar_label(bars, [f"{row.accuracy:.2%}" for row in results], padding=4)
    if known := {name: row.reference for name, row in zip(names, results, strict=True) if row.reference}:
        axes.scatter(list(known.values()), list(known), marker="|", s=300, color=COLORS["ink"], label="reference")
        axes.legend(loc="lower right")
    axes.set(xlim=(0, 1.1), xlabel="test accuracy")
    axes.invert_yaxis()
    return plot


if __name__ == "__main__":
    hydra_command(main, CompareSettings, "compare")
