"""Batches in one process, and by one and two workers of Ray on the same cores: speed, CPU seconds, and memory.

python -m tests.benchmarks.scale_out MODEL.onnx [ROWS,...]

The pictures are made, 32x32, and lie in folders. Each engine has processes of its own, which have done a first batch
before; CPU seconds are those of all of them, Ray's included, and memory that of the command and of the largest other.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from serving.batch.cluster import Cluster
from serving.batch.prediction import PART_ROWS, BatchPrediction
from serving.batch.sources import open_pictures
from serving.model.pictures.decoding import MAX_PIXELS
from serving.model.predictor import Predictor
from tests.helpers.nodes import two_nodes
from tests.helpers.pictures import png

ENGINES = "local", "1 worker", "2 workers"
SECONDS_BETWEEN_LOOKS = 0.5


class Watch:
    """CPU seconds and the most memory of this process and of those that it has started."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.command = self.other = 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watch":
        self._start, self._cpu = time.perf_counter(), self._cpu_seconds()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._start, self._cpu_seconds() - self._cpu
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self.command = max(self.command, this.memory_info().rss)
            with contextlib.suppress(psutil.Error):
                others = [each.memory_info().rss for each in this.children(recursive=True)]
                self.other = max(self.other, *others, 0)

    def _cpu_seconds(self) -> float:
        total = 0.0
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:2])
        return total


def measure(model: Path, folder: str, engine: str) -> None:
    predictor, pictures = Predictor(model), Path(folder)

    def predict(source: Path, cluster: Cluster | None) -> int:
        with TemporaryDirectory() as out:
            files = open_pictures(source, "source")
            with BatchPrediction(files, predictor, Path(out) / "out.parquet", MAX_PIXELS, cluster=cluster) as batch:
                return sum(1 for _ in batch.run())

    with contextlib.ExitStack() as stack:
        if engine == "2 workers":
            stack.enter_context(two_nodes())
        cluster = stack.enter_context(Cluster()) if engine != "local" else None
        predict(pictures / "0000", cluster)
        with Watch() as watch:
            rows = predict(pictures, cluster)
    speed, cpu = f"{rows / watch.seconds:.0f} a second", f"{watch.cpu / rows * 1000:.2f} ms of CPU each"
    memory = f"{watch.command / 1e6:.0f} MB the command, {watch.other / 1e6:.0f} MB another process"
    print(f"{engine}, {rows} pictures: {speed}, {cpu}, {memory}", flush=True)


def main(model: Path, counts: list[int]) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported, here and below
    content = [png(seed=seed) for seed in range(64)]
    for count in counts:
        with TemporaryDirectory() as folder:
            for index in range(count):
                path = Path(folder) / f"{index // PART_ROWS:04d}" / f"{index:08d}.png"
                if index % PART_ROWS == 0:
                    path.parent.mkdir()
                path.write_bytes(content[index % len(content)])
            for engine in ENGINES:
                process = multiprocessing.get_context("spawn").Process(target=measure, args=(model, folder, engine))
                process.start()
                process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in (sys.argv[2] if len(sys.argv) > 2 else "10000,100000").split(",")])
