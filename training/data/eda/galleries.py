"""Pictures side by side, as parts of a page; a notebook shows them as well."""

import numpy as np
from markupsafe import Markup

from training.data.eda.figures import shown_classes
from training.data.eda.near_duplicates import Neighbours
from training.data.pictures import Pictures
from training.pages.page import render_part, thumbnail

SAMPLES = 12


def samples(pictures: Pictures, classes: list[str], seed: int) -> Markup:
    """A row of pictures for each of the shown classes, drawn at random."""
    random = np.random.default_rng(seed)
    rows = []
    for label in shown_classes(len(classes)):
        chosen = random.permutation(np.flatnonzero(pictures.labels == label))[:SAMPLES]
        rows.append((classes[label], [thumbnail(pictures[index]) for index in chosen], False))
    return render_part("gallery.html.jinja", items=rows, kind="rows")


def pairs(neighbours: Neighbours, indices: np.ndarray, classes: list[str]) -> Markup:
    """Pairs of a training picture (left) and a test picture (right), with their labels and how alike they are."""
    items = []
    for index in indices:
        twin = neighbours.nearest[index]
        # One label where they agree.
        names = dict.fromkeys((classes[neighbours.training.labels[twin]], classes[neighbours.test.labels[index]]))
        shown = [thumbnail(neighbours.training[twin]), thumbnail(neighbours.test[index])]
        items.append((f"{neighbours.similarity[index]:.2f}  {' | '.join(names)}", shown, len(names) > 1))
    return render_part("gallery.html.jinja", items=items, kind="pairs")
