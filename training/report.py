"""An evaluation as one HTML page that needs nothing beside it."""

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from training.data import Pictures
from training.evaluation import Evaluation, confusion_figure, reliability_figure

MISCLASSIFIED = 20
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
)


def write_report(
    path: Path,
    title: str,
    evaluation: Evaluation,
    probabilities: np.ndarray,
    pictures: Pictures,
    classes: list[str],
) -> None:
    """Writes metrics, per-class table, confusion matrix, reliability diagram and misclassified pictures to `path`."""
    write_page(
        path,
        "report.html.jinja",
        title=title,
        pictures=len(pictures),
        evaluation=evaluation,
        confusion=data_uri(figure_png(confusion_figure(evaluation, classes))),
        reliability=data_uri(figure_png(reliability_figure(probabilities, pictures.labels))),
        worst=[_row(index, note, probabilities, pictures, classes) for index, note in worst(probabilities, pictures)],
        typical=[
            _row(index, note, probabilities, pictures, classes)
            for index, note in typical(probabilities, pictures, classes)
        ],
    )


def write_page(path: Path, template: str, **values: Any) -> None:
    """Renders a template of this folder with `values` to `path`."""
    page = TEMPLATES.get_template(template).render(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page)
    partial.replace(path)


def worst(probabilities: np.ndarray, pictures: Pictures) -> list[tuple[int, str]]:
    """The wrong answers that the model was surest of: index and note, the surest first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != pictures.labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:MISCLASSIFIED]
    true = probabilities[surest, pictures.labels[surest]]
    return [(int(index), f"gave the true class {share:.1%}") for index, share in zip(surest, true, strict=True)]


def typical(probabilities: np.ndarray, pictures: Pictures, classes: list[str]) -> list[tuple[int, str]]:
    """For each of the most frequent confusions the picture of median confidence: index and note."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != pictures.labels)
    confusions = Counter((int(pictures.labels[index]), int(predicted[index])) for index in wrong)
    chosen = []
    for (true, answer), count in confusions.most_common(MISCLASSIFIED):
        alike = wrong[(pictures.labels[wrong] == true) & (predicted[wrong] == answer)]
        median = alike[np.argsort(probabilities[alike, answer], kind="stable")[len(alike) // 2]]
        total = int((pictures.labels == true).sum())
        chosen.append((int(median), f"{count} of {total} pictures of {classes[true]} are taken for {classes[answer]}"))
    return chosen


def _row(index: int, note: str, probabilities: np.ndarray, pictures: Pictures, classes: list[str]) -> dict[str, Any]:
    answer = int(probabilities[index].argmax())
    buffer = io.BytesIO()
    Image.fromarray(pictures[index]).save(buffer, "PNG")
    return {
        "name": str(pictures.names[index]),
        "true": classes[pictures.labels[index]],
        "predicted": classes[answer],
        "confidence": float(probabilities[index, answer]),
        "picture": data_uri(buffer.getvalue()),
        "note": note,
    }


def figure_png(figure: Figure, dpi: int = 110) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A picture as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
