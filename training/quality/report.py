"""An evaluation as one HTML page, and what such pages have in common."""

import base64
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from training.quality.evaluation import Evaluation

MISCLASSIFIED = 20
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
)


def render_report(title: str, evaluation: Evaluation, figures: Mapping[str, bytes]) -> bytes:
    """Metrics, per-class table, the figures of `evaluation_figures`, and misclassified pictures."""
    return render_page(
        "report.html.jinja",
        figures,
        title=title,
        evaluation=evaluation,
        worst=[_row(evaluation, index, note) for index, note in worst(evaluation)],
        typical=[_row(evaluation, index, note) for index, note in typical(evaluation)],
    )


def render_page(template: str, figures: Mapping[str, bytes], **values: Any) -> bytes:
    """Renders a template of this folder with PNG files inside of the page: it needs nothing beside it."""
    inside = {name: _data_uri(figure) for name, figure in figures.items()}
    return TEMPLATES.get_template(template).render(figures=inside, **values).encode()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that nobody ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def worst(evaluation: Evaluation) -> list[tuple[int, str]]:
    """The wrong answers that the model was surest of: index and note, the surest first."""
    probabilities, labels = evaluation.probabilities, evaluation.pictures.labels
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:MISCLASSIFIED]
    true = probabilities[surest, labels[surest]]
    return [(int(index), f"gave the true class {share:.1%}") for index, share in zip(surest, true, strict=True)]


def typical(evaluation: Evaluation) -> list[tuple[int, str]]:
    """For each of the most frequent confusions the picture of median confidence: index and note."""
    probabilities, labels, classes = evaluation.probabilities, evaluation.pictures.labels, evaluation.classes
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    confusions = Counter((int(labels[index]), int(predicted[index])) for index in wrong)
    chosen = []
    for (true, answer), count in confusions.most_common(MISCLASSIFIED):
        alike = wrong[(labels[wrong] == true) & (predicted[wrong] == answer)]
        median = alike[np.argsort(probabilities[alike, answer], kind="stable")[len(alike) // 2]]
        total = int((labels == true).sum())
        chosen.append((int(median), f"{count} of {total} pictures of {classes[true]} are taken for {classes[answer]}"))
    return chosen


def _row(evaluation: Evaluation, index: int, note: str) -> dict[str, Any]:
    answer = int(evaluation.probabilities[index].argmax())
    pictures, classes = evaluation.pictures, evaluation.classes
    png = io.BytesIO()
    Image.fromarray(pictures[index]).save(png, "PNG")
    return {
        "name": str(pictures.names[index]),
        "true": classes[pictures.labels[index]],
        "predicted": classes[answer],
        "confidence": float(evaluation.probabilities[index, answer]),
        "picture": _data_uri(png.getvalue()),
        "note": note,
    }


def _data_uri(png: bytes) -> str:
    """A picture as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
