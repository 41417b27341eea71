"""An evaluation as one HTML page."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.model.contract import Measured
from serving.model.registry import champion_uri
from training import tracking
from training.data.split import ImageData
from training.pages.page import THUMBNAIL, render_page, thumbnail
from training.quality.evaluation import Evaluation
from training.quality.figures import evaluation_plots, learning_curves_figure, plots, shows_whole_matrix
from training.settings import DataSettings, TrainSettings

MISCLASSIFIED = 300


def log_report(
    run_id: str,
    settings: TrainSettings,
    data: ImageData,
    evaluation: Evaluation,
    measured: Sequence[Measured] = (),
) -> None:
    """Keeps the report and its plots with a run; `measured` is known once the run is exported."""
    losses, accuracies = (tracking.history(run_id, name) for name in ("loss", "validation_accuracy"))
    drawn = plots({"learning_curves": lambda: learning_curves_figure(losses, accuracies)})
    drawn |= evaluation_plots(evaluation)
    for plot, svg in drawn.items():
        tracking.log_file(run_id, f"plots/{plot}.svg", svg.encode())
    name = settings.model.name
    report = render_report(
        *(f"{name} on {data.name}", f"MLflow run {run_id}", evaluation, data, drawn),
        next_steps(settings.data, champion_uri(), name),
        tracking.as_yaml(settings),
        measured,
    )
    tracking.log_file(run_id, "report.html", report)


def render_report(
    title: str,
    subtitle: str,
    evaluation: Evaluation,
    data: ImageData,
    plots: Mapping[str, str],
    steps: list[tuple[str, str]],
    settings: str = "",
    measured: Sequence[Measured] = (),
) -> bytes:
    """Everything that there is to know of a model's quality.

    Args:
        plots: SVG files; those of `evaluation_plots`, and perhaps `learning_curves`.
        steps: what one may do next: a sentence and a command.
        settings: what the model was trained with, as YAML.
        measured: what other precisions cost and gain.
    """
    chosen, total = misclassified(evaluation)
    wrong = [_row(evaluation, index) for index in chosen]
    drawn = {"learning_curves": "", "confusion": "", "reliability": "", **plots}
    return render_page(
        "report.html.jinja",
        drawn,
        title=title,
        subtitle=subtitle,
        evaluation=evaluation,
        whole_matrix=shows_whole_matrix(evaluation),
        data=data,
        wrong=wrong,
        wrong_total=total,
        true_names=sorted({row["true"] for row in wrong}),
        answer_names=sorted({row["answer"] for row in wrong}),
        steps=steps,
        settings=settings,
        measured=measured,
    )


def next_steps(data: DataSettings, model_uri: str, model: str | None = None) -> list[tuple[str, str]]:
    """What one may do with a model: a sentence and a command each."""
    source = f"data=folder data.root={shlex.quote(data.root)}" if data.root else f"data={data.name}"
    pictures = shlex.quote(data.root) if data.root else data.name
    models = f" models=[{model}]" if model else ""
    return [
        ("Train again, register, and promote it if it is better:", f"python -m flows.retrain{models} data={pictures}"),
        ("Serve the champion:", "make serve"),
        ("Score it on other pictures:", f"python -m training.evaluate model_uri={model_uri} {source}"),
        ("Look at the pictures:", f"python -m training.eda {source}"),
    ]


def misclassified(evaluation: Evaluation) -> tuple[list[int], int]:
    """The pictures to show, the surest answers first, every class in turn; and how many there are in all."""
    probabilities, labels = evaluation.probabilities, evaluation.pictures.labels
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")]
    # Each one's place within its class: the first of every class come before the second of any.
    place = np.zeros(len(surest), np.int64)
    for label in np.unique(labels[surest]):
        members = labels[surest] == label
        place[members] = np.arange(members.sum())
    chosen = surest[np.argsort(place, kind="stable")[:MISCLASSIFIED]]
    return [int(index) for index in chosen[np.argsort(-confidence[chosen], kind="stable")]], len(wrong)


def _row(evaluation: Evaluation, index: int) -> dict[str, Any]:
    answer = int(evaluation.probabilities[index].argmax())
    pictures, classes = evaluation.pictures, evaluation.classes
    return {
        "name": str(pictures.names[index]),
        "true": classes[pictures.labels[index]],
        "answer": classes[answer],
        "confidence": float(evaluation.probabilities[index, answer]),
        "picture": thumbnail(pictures[index]),
        "small": max(pictures.sizes[index]) < THUMBNAIL,
        "note": f"the true class got {evaluation.probabilities[index, pictures.labels[index]]:.1%}",
    }
