"""The pictures of the README, from a real run: python docs/pictures.py

Trains on scikit-learn's digits, starts the service, asks it in a Chromium, and takes screenshots of its page and of the
run's report.
"""

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PORT = "3999"


def main(state: Path) -> None:
    os.environ |= {"STATE_DIR": str(state), "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db", "SERVING_PORT": PORT}
    from serving.model.registry import DEFAULT_NAME, version_uri
    from serving.running import running
    from training import tracking
    from training.config import compose
    from training.data.split import load_data
    from training.release.candidate import export_run
    from training.release.registry import register
    from training.train import train

    settings = compose(["data=digits", "experiment=quick", "trainer.epochs=3"])
    run_id = train(settings)
    os.environ["SERVING_MODEL"] = version_uri(DEFAULT_NAME, register(run_id, export_run(run_id), DEFAULT_NAME))
    test = load_data(settings.data, settings.seed, settings.model.decoding).test
    chosen = {int(test.labels[index]): index for index in range(40, 0, -1)}
    files = []
    for digit in (3, 8):
        files.append(state / f"digit-{digit}.png")
        Image.fromarray(test[chosen[digit]]).save(files[-1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        with running(f"http://127.0.0.1:{PORT}", state / "service.log", {}):
            page = open_page(browser, f"http://127.0.0.1:{PORT}/ui/", 860)
            page.locator("#files").set_input_files(files)
            expect(page.locator(".classes li")).to_have_count(10)
            save(page.screenshot(), "page.png")
        report = open_page(browser, tracking.artifact(run_id, "report.html").resolve().as_uri(), 1180)
        save(report.screenshot(), "report.png")


def open_page(browser: Browser, address: str, height: int):  # type: ignore[no-untyped-def]
    page = browser.new_page(viewport={"width": 900, "height": height}, device_scale_factor=1.5, color_scheme="light")
    page.goto(address)
    return page


def save(png: bytes, name: str) -> None:
    """In 128 colours, which such pages hardly need and which take a fraction of the bytes."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(128).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory))
