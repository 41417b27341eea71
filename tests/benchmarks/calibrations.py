"""What INT8 loses by how its ranges are found, and by the layers that stay in float32.

python -m tests.benchmarks.calibrations cifar10-images.zip [MODEL]

MODEL (efficientnet_lite1) is fine-tuned by `experiment=quick` on 6,000 pictures; every second test picture counts.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationMethod
from rich.console import Console
from rich.table import Table

PERCENTILE = {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.999}}


def main(archive: Path, name: str) -> None:
    table = Table(
        "ranges", "pictures", "first layers in float32", "points lost", "changed", "times as fast", title=name
    )
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"STATE_DIR": directory, "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db"}
        from serving.model.runtime import runtimes
        from training.config import compose
        from training.data.split import load_data
        from training.quality.evaluation import predict
        from training.release.candidate import accuracy_of, load_model
        from training.release.export import export_onnx, onnx_classify
        from training.release.quantization import quantize_int8, speed_ratio
        from training.train import train

        words = ["data=folder", f"data.root={archive}", f"model={name}", "experiment=quick", "data.train_limit=6000"]
        settings = compose(words)
        data = load_data(settings.data, settings.seed, settings.model.decoding)
        exact_file, file = (Path(directory) / f"{each}.onnx" for each in ("exact", "int8"))
        export_onnx(load_model(train(settings)), exact_file)
        test, images = data.test.subset(np.arange(0, len(data.test), 2)), next(iter(data.test.batches(256)))[1]
        exact = predict(onnx_classify(exact_file), test, "in float32", 32)

        def row(ranges: str, pictures: int, first: int, **options: Any) -> None:
            quantize_int8(exact_file, file, data.train, 8, first, pictures, **options)  # most keep all that is computed
            classify = onnx_classify(file, "int8", runtimes("int8")[0])
            answers = predict(classify, test, f"in INT8, {ranges}", 32)
            lost = 100 * (accuracy_of(exact, test) - accuracy_of(answers, test))
            changed = (answers.argmax(1) != exact.argmax(1)).mean()
            speed = speed_ratio(classify, onnx_classify(exact_file), images)
            table.add_row(ranges, str(pictures), str(first), f"{lost:.2f}", f"{changed:.2%}", f"{speed:.1f}")

        for pictures in (64, 512, 2048):
            row("smallest and largest", pictures, 0)
        row("percentile 99.999", 128, 0, **PERCENTILE)
        row("entropy", 128, 0, calibrate_method=CalibrationMethod.Entropy)
        for first in (1, 2, 3, 5):
            row("smallest and largest", 512, first)
        row("percentile 99.999", 128, 3, **PERCENTILE)
    Console(width=120).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *(sys.argv[2:] or ["efficientnet_lite1"]))
