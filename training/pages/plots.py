"""Plots in the colours of the style sheet, as SVG: sharp at any size, with letters of every script."""

import io
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from serving.model import STYLESHEET

# Matplotlib measures with a font that may lack letters; what is shown has the browser's fonts.
warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)

# The names and values of the style sheet's colours on a light ground, such as ink, accent and card.
COLORS: dict[str, str] = dict(re.findall(r"--([\w-]+): (#\w{6});", STYLESHEET.read_text().partition("@media")[0]))
STYLE: Any = {
    "font.size": 10,
    "text.parse_math": False,  # a class may have a $ in its name
    "svg.fonttype": "none",
    "figure.facecolor": COLORS["card"],
    "axes.facecolor": COLORS["card"],
    "axes.edgecolor": COLORS["rest"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), COLORS["ink"]),
}


def svg(figure: Figure) -> str:
    """A figure, drawn in STYLE, as an SVG file."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def themed(drawing: str) -> str:
    """An SVG file as a part of a page, whose colours it follows, also on a dark ground."""
    part = drawing[drawing.index("<svg") :]
    for name, color in COLORS.items():
        part = part.replace(color, f"var(--{name})")
    return part


def shortened(name: str, length: int = 24) -> str:
    """A class's name where room is short."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
