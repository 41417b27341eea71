"""The report of a run, in a real Chromium: what it says, and that it says it at any size."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from serving.model.contract import Measured
from serving.model.pictures.decoding import AS_SHOWN
from tests.helpers.state import TINY
from training.config import compose
from training.data.pictures import Pictures
from training.data.sources import LeftOut
from training.data.split import ImageData, load_data
from training.quality.evaluation import Evaluation, evaluate
from training.quality.figures import evaluation_plots, learning_curves_figure, plots
from training.quality.report import MISCLASSIFIED, misclassified, next_steps, render_report

SAID = Measured(
    **{"precision": "int8", "runtime": "openvino", "accuracy": 0.655, "changed": 0.02, "largest_change": 0.47},
    **{"speed": 2.3, "allowed": False},
)
ODD = ["$x_1$", "Müll", "猫", "<b>bold</b>", "a & b", "c\\d", "%s", "{{x}}", "  ", "a" * 80]


def evaluation_of(pictures: Pictures, classes: list[str], wrong: dict[int, tuple[int, float]]) -> Evaluation:
    """All answers are right but these: the answer and its probability by the picture's index."""
    probabilities = np.full((len(pictures), len(classes)), 0.01, np.float32)
    probabilities[np.arange(len(pictures)), pictures.labels] = 1 - 0.01 * (len(classes) - 1)
    for index, (answer, confidence) in wrong.items():
        probabilities[index] = (1 - confidence) / (len(classes) - 1)
        probabilities[index, answer] = confidence
    return evaluate(probabilities, pictures, classes)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(compose(TINY).data, 1, AS_SHOWN)


def test_the_misclassified_are_the_surest_with_every_class_in_turn(data: ImageData) -> None:
    zeros, (one,) = np.flatnonzero(data.test.labels == 0)[:3], np.flatnonzero(data.test.labels == 1)[:1]
    wrong = {int(zeros[0]): (8, 0.5), int(zeros[1]): (8, 0.7), int(zeros[2]): (8, 0.6), int(one): (7, 0.65)}
    evaluation = evaluation_of(data.test, data.classes, wrong)
    assert misclassified(evaluation) == ([zeros[1], one, zeros[2], zeros[0]], 4)

    everything = {index: (int(label + 1) % 10, 0.9) for index, label in enumerate(data.test.labels)}
    many = data.test.subset(np.tile(np.arange(len(data.test)), 4))
    chosen, total = misclassified(
        evaluation_of(many, data.classes, {index: everything[index % len(data.test)] for index in range(len(many))})
    )
    assert (len(chosen), total) == (MISCLASSIFIED, len(many))
    shown = np.bincount(many.labels[chosen])
    assert shown.min() >= shown.max() - 1, "every class has its turn"


@pytest.fixture
def report(data: ImageData, tmp_path: Path) -> Path:
    """Of classes with odd names, of which every third picture is misclassified."""
    odd = ImageData(
        **{**data.__dict__, "classes": ODD, "left_out": [LeftOut("a/<i>.txt", "not a picture", "The file is empty.")]}
    )
    wrong = {index: (int(data.test.labels[index] + 3) % 10, 0.9) for index in range(0, len(data.test), 3)}
    evaluation = evaluation_of(data.test, ODD, wrong)
    drawn = plots({"learning_curves": lambda: learning_curves_figure({1: 2.0, 2: 1.0}, {1: 0.5})})
    drawn |= evaluation_plots(evaluation)
    steps = next_steps(compose(["data=folder", "data.root=/my pictures"]).data, "models:/x@champion", "resnet18")
    path = tmp_path / "report.html"
    path.write_bytes(render_report("A <title>", "of a run", evaluation, odd, drawn, steps, "seed: 1", [SAID]))
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report on a phone; it asks nobody and runs without an error."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(str(error)))
    page.goto(report.as_uri())
    yield page
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_it_says_what_there_is_to_know_and_fits_a_phone(page: Page, report: Path) -> None:
    assert report.stat().st_size < 5_000_000
    expect(page.get_by_role("heading", level=1)).to_have_text("A <title>")
    expect(page.locator(".big")).to_have_text("66.50 %")
    expect(page.locator("main")).to_contain_text("95 % interval: 59.7")
    expect(page.locator("details").first).to_contain_text("a/<i>.txt")
    expect(page.locator("svg")).to_have_count(3)
    for name in ODD:
        assert name.strip()[:20] in page.locator("section", has_text="By class").inner_text(), name
    expect(page.locator("section", has_text="SERVING_PRECISION").locator("tr").last).to_have_text(
        re.compile(r"int8\s*openvino\s*65.50 %\s*2.00 %\s*4.7e-01\s*2.3\S\s*not allowed")
    )
    expect(page.locator("pre").first).to_have_text("python -m flows.retrain models=[resnet18] data='/my pictures'")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it fits a phone"


def test_the_misclassified_can_be_filtered_by_class(page: Page) -> None:
    shown = page.locator("#wrong > li:visible")
    expect(shown).to_have_count(67)
    page.get_by_label("true class").select_option("猫")
    expect(page.locator("#shown")).to_have_text(re.compile(r"^\d+ shown$"))
    assert {item.get_attribute("data-true") for item in shown.all()} == {"猫"}
    page.get_by_label("answer").select_option("$x_1$")
    expect(shown).to_have_count(0)
    page.get_by_label("answer").select_option("c\\d")
    assert shown.count() > 0


def test_a_report_without_any_plot_says_the_rest(data: ImageData) -> None:
    evaluation = evaluation_of(data.test, data.classes, {0: (8, 0.5)})
    html = render_report("A title", "of a run", evaluation, data, {}, []).decode()
    assert "99.50" in html
    assert "<svg" not in html


def test_plots_show_every_name_as_it_is(report: Path) -> None:
    """Matplotlib would take dollars for mathematics, and has no Chinese letters of its own."""
    html = report.read_text()
    for name in ("$x_1$", "猫", "&lt;b&gt;bold&lt;/b&gt;", "a &amp; b"):
        assert re.search(rf"<text[^>]*>{re.escape(name)}</text>", html), name
