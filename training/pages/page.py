"""HTML pages that need nothing beside them: one file, no network."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from serving.model import STYLESHEET
from training.pages.plots import themed

THUMBNAIL = 96
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, plots: Mapping[str, str], **values: Any) -> bytes:
    """Renders a template of this folder with SVG files inside of the page."""
    inside = {name: Markup(themed(plot)) if plot else "" for name, plot in plots.items()}
    style = Markup(STYLESHEET.read_text())
    return TEMPLATES.get_template(template).render(plots=inside, style=style, **values).encode()


def render_part(template: str, **values: Any) -> Markup:
    """Renders a template of this folder that is a part of a page."""
    return Markup(TEMPLATES.get_template(template).render(**values))


def thumbnail(pixels: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), in at most 96 x 96 pixels, as an address that holds the picture itself."""
    image = Image.fromarray(pixels)
    small = max(image.size) <= THUMBNAIL
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that nobody ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
