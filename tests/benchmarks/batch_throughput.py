"""Pictures a second from files into a Parquet file, against ONNX Runtime alone on a picture that is decoded already.

python -m tests.benchmarks.batch_throughput MODEL.onnx SOURCE [ROUNDS]

SERVING_PRECISION counts for the former. Rounds alternate, so that what else the machine does meets both; the figure is
the median over them.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from serving.batch.prediction import BatchPrediction
from serving.batch.sources import open_pictures
from serving.model.pictures.decoding import MAX_PIXELS, decode
from serving.model.precision import chosen
from serving.model.predictor import Predictor
from tests.benchmarks.serving_throughput import Raw


def main(model: Path, path: Path, rounds: int) -> None:
    source, predictor = open_pictures(path, "SOURCE"), Predictor(model, precision=chosen())
    raw = Raw(model, decode(next(iter(source.read_from(0))).read()))

    def offline() -> float:
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            with BatchPrediction(source, predictor, Path(folder) / "out.parquet", MAX_PIXELS) as prediction:
                for _ in prediction.run():
                    pass
            return len(source) / (time.perf_counter() - start)

    rates = np.array([(raw.load(32, 5)[0], offline()) for _ in range(rounds)])
    limit, ours = np.median(rates, axis=0)
    print(f"ONNX Runtime alone: {limit:.0f} pictures a second")
    print(f"batch predict in {predictor.precision}, {len(source)} pictures: {ours:.0f} a second, {ours / limit:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 3)
