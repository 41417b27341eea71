"""Pictures a second into a Parquet file, against ONNX Runtime alone on pictures that are decoded already.

python -m tests.benchmarks.batch_throughput MODEL.onnx SOURCE [ROUNDS]

Rounds alternate, so that what else the machine does meets both; the figure is the best round of each.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from serving.batch import BatchPrediction
from serving.images import decode
from serving.predictor import Predictor
from serving.settings import Settings
from serving.sources import Source, open_source

BATCHES = (1, 8, 16, 32, 64)


def per_second(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def batches(source: Source, size: int, max_pixels: int) -> list[np.ndarray]:
    by_shape = defaultdict(list)
    for picture in source.read_from(0):
        pixels = decode(picture.read(), max_pixels)
        by_shape[pixels.shape].append(pixels)
    return [np.stack(group[i : i + size]) for group in by_shape.values() for i in range(0, len(group), size)]


def main(model: Path, path: Path, rounds: int) -> None:
    max_pixels = Settings().max_pixels
    source, predictor = open_source(path), Predictor(model, "file")

    def alone(size: int, limit: int | None = None) -> float:
        work = batches(source, size, max_pixels)[:limit]
        return per_second(sum(map(len, work)), lambda: [predictor.predict(images) for images in work])

    def offline() -> float:
        with TemporaryDirectory() as folder:
            prediction = BatchPrediction(source, predictor, Path(folder) / "out.parquet", max_pixels)
            with prediction:
                return per_second(source.count, lambda: list(prediction.run()))

    alone(32, 10)  # the first batches choose kernels and allocate memory
    best = max(BATCHES, key=lambda size: alone(size, 1024 // size))
    raw, ours = zip(*((alone(best), offline()) for _ in range(rounds)), strict=True)
    print(f"ONNX Runtime alone, batches of {best}: {max(raw):.0f} pictures a second")
    print(f"batch predict: {max(ours):.0f} pictures a second, {max(ours) / max(raw):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 3)
