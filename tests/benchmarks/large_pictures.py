"""Photos: what decoding them at a fraction of their size saves, and what a data set of them takes.

python -m tests.benchmarks.large_pictures [PHOTOS] [IMAGE_SIZE]

Photos of 12 megapixels are made of two real photographs that scikit-learn has with it. One process trains for one
epoch on a few of them, with all of them in the cache; its memory is what is its own, without the pages of mapped files.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

from serving.model.pictures.decoding import Decoding, decode

WIDTH, HEIGHT = 4000, 3000
ROUNDS = 7
PHOTOS_OF_THE_ISSUE = 20_000


def photos(root: Path, count: int) -> list[Path]:
    """Two classes, each a photograph at 12 megapixels with other noise; about 4 MB each."""
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        for pixels in load_sample_images().images
    ]
    paths = []
    for index in range(count):
        folder = root / ("temple", "flower")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(random.integers(-12, 12, (HEIGHT // 4, WIDTH // 4), np.int8).view(np.uint8))
        picture = Image.blend(images[index % 2], noise.convert("RGB").resize((WIDTH, HEIGHT)), 0.06)
        paths.append(folder / f"{index:05d}.jpg")
        picture.save(paths[-1], quality=90)
    return paths


def seconds(content: bytes, decoding: Decoding) -> float:
    start = time.perf_counter()
    decode(content, decoding)
    return time.perf_counter() - start


def own_memory(process: psutil.Process) -> int:
    """The peak of what a process has for itself, in bytes; returns when it ends."""
    peak = 0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        fields = dict(line.split(":", 1) for line in status.splitlines())
        peak = max(peak, 1024 * int(fields.get("RssAnon", "0 kB").split()[0]))
        time.sleep(0.02)
    return peak


def main(count: int, image_size: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root, state = Path(directory) / "photos", Path(directory) / "state"
        paths = photos(root, count)
        contents = [path.read_bytes() for path in paths[:4]]
        reduced = Decoding(shorter_side=2 * image_size)
        turns = [[seconds(content, decoding) for decoding in (Decoding(), reduced)] for content in contents * ROUNDS]
        whole, small = np.median(turns, axis=0)

        words = [
            "data=folder",
            f"data.root={root}",
            f"data.cache_dir={directory}/cache",
            f"model.image_size={image_size}",
        ]
        words += ["data.train_limit=64", "data.validation_limit=32", "trainer.epochs=1", "trainer.batch_size=16"]
        command = [sys.executable, "-m", "training.train", *words]
        start = time.perf_counter()
        environment = {"STATE_DIR": str(state), "MLFLOW_TRACKING_URI": f"sqlite:///{state}/mlflow.db"}
        process = psutil.Popen(command, env={**psutil.Process().environ(), **environment}, stdout=-3, stderr=-3)
        peak = own_memory(process)
        if process.wait():
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        duration = time.perf_counter() - start
        cache = sum(path.stat().st_size for path in Path(directory, "cache").rglob("*") if path.is_file())
        (report,) = state.rglob("report.html")

        table = Table("", "measured", f"for {PHOTOS_OF_THE_ISSUE:,} photos")
        table.add_row("decoding at full size", f"{1000 * whole:.0f} ms", "")
        table.add_row(f"for image_size={image_size}", f"{1000 * small:.0f} ms, {small / whole:.2f} of it", "")
        table.add_row("files", f"{sum(path.stat().st_size for path in paths) / 1e6:,.0f} MB", "")
        table.add_row("cache", f"{cache / 1e6:,.0f} MB", f"{cache / count * PHOTOS_OF_THE_ISSUE / 1e9:.1f} GB")
        table.add_row("memory of training", f"{peak / 1e9:.2f} GB", "the same: a batch at a time")
        table.add_row("report", f"{report.stat().st_size / 1e6:.2f} MB", "")
        table.add_row(f"all of it, {count} photos", f"{duration:.0f} s", "")
        Console().print(table)


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    main(*(arguments + [500, 224][len(arguments) :]))
