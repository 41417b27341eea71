"""Models by experiments, in one table: python -m training.compare models=[resnet18] experiments=[frozen,unfrozen]

A combination whose run is finished is not trained again, so the matrix goes on where it was stopped.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig

from training import tracking
from training.config import compose_config, hydra_command
from training.settings import require_valid
from training.train import finished_run, train

log = logging.getLogger(__name__)

# The published accuracies on CIFAR-10: 5 epochs, Adam 1e-4, batch 64, 224x224.
REFERENCE = {
    ("resnet18", "frozen"): 0.5142,
    ("resnet18", "unfrozen"): 0.8201,
    ("densenet121", "frozen"): 0.7482,
    ("densenet121", "unfrozen"): 0.9490,
    ("densenet121", "no_coarse_dropout"): 0.9644,
    ("vit_b16", "frozen"): 0.9372,
    ("vit_b16", "unfrozen"): 0.9369,
}


@dataclass(frozen=True)
class Result:
    """A row of the table; shares in [0, 1]."""

    model: str
    experiment: str
    accuracy: float
    precision: float
    recall: float
    f1: float
    minutes: float
    images_per_second: float
    reference: float | None


def main(config: DictConfig) -> None:
    """Runs what is left of the matrix and writes the table as Markdown and as a picture."""
    combinations = [(model, experiment) for model in config.models for experiment in config.experiments]
    configs = {
        key: compose_config([f"experiment={key[1]}", f"model={key[0]}", *config.overrides]) for key in combinations
    }
    for composed in configs.values():
        require_valid(composed)  # a mistake in the last is refused before the first is trained
    results = []
    path = Path(config.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    for (model, experiment), composed in configs.items():
        run_id = finished_run(composed) or train(composed)
        results.append(result(run_id, model, experiment))
        path.with_suffix(".md").write_text(markdown(results))
        figure(results).savefig(path.with_suffix(".png"), dpi=120)
    print(markdown(results))
    log.info("written to %s.md and %s.png", path, path)


def result(run_id: str, model: str, experiment: str) -> Result:
    client = tracking.connect()
    metrics = client.get_run(run_id).data.metrics
    seconds, speeds = (
        {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}
        for name in ("train_seconds", "images_per_second")
    )
    total = sum(seconds.values())
    return Result(
        model=model,
        experiment=experiment,
        **{name: metrics[f"test_{name}"] for name in ("accuracy", "precision", "recall", "f1")},
        minutes=total / 60,
        images_per_second=sum(speeds[epoch] * seconds[epoch] for epoch in seconds) / total,
        reference=REFERENCE.get((model, experiment)),
    )


def markdown(results: Sequence[Result]) -> str:
    header = list(asdict(results[0]))
    lines = ["| " + " | ".join(header).replace("_", " ") + " |", "| --- " * len(header) + "|"]
    for row in results:
        shares = [f"{share:.2%}" for share in (row.accuracy, row.precision, row.recall, row.f1)]
        reference = f"{row.reference:.2%}" if row.reference else ""
        cells = [row.model, row.experiment, *shares, f"{row.minutes:.1f}", f"{row.images_per_second:.0f}", reference]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(results: Sequence[Result]) -> Figure:
    """Test accuracies as bars, the published ones as marks."""
    plot = Figure(figsize=(8, 1 + 0.45 * len(results)), layout="constrained")
    axes = plot.subplots()
    names = [f"{row.model}, {row.experiment}" for row in results]
    bars = axes.barh(names, [row.accuracy for row in results])
    axes.bar_label(bars, [f"{row.accuracy:.2%}" for row in results], padding=4)
    known = [(name, row.reference) for name, row in zip(names, results, strict=True) if row.reference]
    if known:
        axes.scatter(
            [share for _, share in known],
            [name for name, _ in known],
            marker="|",
            s=300,
            color="black",
            label="reference",
        )
        axes.legend(loc="lower right")
    axes.set(xlim=(0, 1.1), xlabel="test accuracy")
    axes.invert_yaxis()
    return plot


if __name__ == "__main__":
    hydra_command(main, "compare")
