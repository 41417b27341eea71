"""The page at /ui, used in a real Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.helpers.pictures import png
from tests.helpers.service import Serve
from tests.helpers.state import Trained


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A phone's page; it asks nobody but the service and runs without an error."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    outside: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []
    assert problems == []
    page.close()


def test_pictures_are_shown_with_their_classes(page: Page, service: str, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(png()[:100])
    page.goto(f"{service}/ui")
    expect(page.locator("#model")).to_contain_text(f"efficientnet_lite0, version {trained.version}")
    page.get_by_label("Choose pictures").set_input_files([tmp_path / "noise.png", tmp_path / "broken.png"])

    answer = httpx.post(f"{service}/classify", files={"image": png()}).json()
    good = page.locator(".card", has_text="noise.png")
    expect(good.locator(".verdict")).to_have_text(answer["label"])
    expect(good.locator(".classes li")).to_have_count(5)
    expect(good.locator(".name").first).to_have_text(answer["label"])
    expect(good.locator(".value").first).to_have_text(re.compile(r"\d+(\.\d)?%"))
    track, fill = good.locator(".track").first.bounding_box(), good.locator(".fill").first.bounding_box()
    assert track is not None
    assert fill is not None
    assert fill["width"] / track["width"] == pytest.approx(answer["confidence"], abs=0.02)

    broken = page.locator(".card", has_text="broken.png")
    expect(broken.locator(".verdict")).to_contain_text("The picture is broken")
    expect(page.get_by_role("status")).to_contain_text(re.compile("noise.png: |broken.png: "))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it fits a phone"
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".card")).to_have_count(0)


def test_a_picture_is_shown_as_the_model_sees_it(page: Page, service: str, tmp_path: Path) -> None:
    """The middle square of it, and white where it is transparent, also on a dark page."""
    stripes = np.zeros((20, 60, 4), np.uint8)
    stripes[:, :20] = stripes[:, 40:] = (255, 0, 0, 255)  # outside of the middle
    stripes[:10, 20:40] = (0, 0, 255, 255)
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    page.emulate_media(color_scheme="dark")
    page.goto(f"{service}/ui/")
    expect(page.locator("#model")).to_contain_text("version")
    page.locator("#files").set_input_files(tmp_path / "stripes.png")
    expect(page.locator(".classes li")).to_have_count(5)
    page.locator(".thumb").screenshot(path=tmp_path / "thumb.png")
    with Image.open(tmp_path / "thumb.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
    height, width = pixels.shape[:2]
    np.testing.assert_array_equal(pixels[height // 4, [width // 8, width // 2, -width // 8]], [[0, 0, 255]] * 3)
    np.testing.assert_array_equal(pixels[3 * height // 4, [width // 8, width // 2, -width // 8]], [[255] * 3] * 3)


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_a_picture_can_be_pasted_or_dropped(page: Page, service: str, event: str) -> None:
    page.goto(f"{service}/ui/")
    page.evaluate(
        """([kind, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
            const options = {bubbles: true, cancelable: true};
            document.body.dispatchEvent(kind === "drop"
                ? new DragEvent(kind, {...options, dataTransfer: data})
                : new ClipboardEvent(kind, {...options, clipboardData: data}));
        }""",
        [event, list(png())],
    )
    expect(page.locator(".card", has_text=f"{event}.png").locator(".classes li")).to_have_count(5)


def test_the_keyboard_reaches_everything(page: Page, service: str) -> None:
    # From now on, since expect_file_chooser alone does not wait until Chromium tells of one.
    page.on("filechooser", lambda _: None)
    page.goto(f"{service}/ui/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    with page.expect_file_chooser():
        page.keyboard.press("Space")


def test_a_token_is_asked_for_and_waiting_pictures_go_on(page: Page, serve: Serve) -> None:
    with serve(SERVING_TOKENS="my-secret") as served:
        page.goto(f"{served.url}/ui/")
        field = page.get_by_label("This service needs an access token.")
        expect(field).to_be_visible()
        page.locator("#files").set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": png()})
        expect(page.locator(".verdict")).to_contain_text("token is required")
        field.fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_label("does not know this access token")).to_be_visible()
        page.locator("#token").fill("my-secret")
        page.keyboard.press("Enter")
        expect(page.locator("#access")).to_be_hidden()
        expect(page.locator(".classes li")).to_have_count(5)
        expect(page.locator("#model")).to_contain_text("version file")


def test_it_is_light_or_dark_as_the_reader_likes_it(browser: Browser, service: str, tmp_path: Path) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"{service}/ui/")
        page.screenshot(path=tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as shot:
            brightness[scheme] = np.asarray(shot.convert("L")).mean()
        page.close()
    assert brightness["light"] > 200 > 55 > brightness["dark"]
