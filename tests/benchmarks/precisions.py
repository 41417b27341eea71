"""What bf16 and INT8 cost and gain: accuracy, changed answers, size and speed, beside ONNX Runtime in float32.

python -m tests.benchmarks.precisions cifar10-images.zip

efficientnet_lite0 and lite1 are fine-tuned by `experiment=quick`, and measured on all test pictures, as their export
does. The reference models have random weights here, so that only size, speed and the largest change say something: on
500 pictures.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from serving.model.contract import MODEL_FILE
from serving.model.predictor import file_for

TUNED = ("efficientnet_lite0", "efficientnet_lite1")
RANDOM = ("resnet18", "densenet121", "vit_b16")


def main(archive: Path) -> None:
    table = Table("", "precision", "runtime", "accuracy", "changed", "largest change", "MB", "times as fast")
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"STATE_DIR": directory, "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db"}
        from training.config import compose
        from training.data.split import load_data
        from training.model.classifier import build_model
        from training.quality.evaluation import predict
        from training.release.candidate import load_model, measure
        from training.release.export import export_onnx, onnx_classify
        from training.release.quantization import quantize_int8
        from training.train import train

        torch.manual_seed(0)
        for name in (*TUNED, *RANDOM):
            words = ["data=folder", f"data.root={archive}", f"model={name}"]
            if name in TUNED:
                settings = compose([*words, "experiment=quick"])
                model = load_model(train(settings))
            else:
                settings = compose([*words, "model.weights=none", "data.train_limit=512", "data.test_limit=500"])
                model = build_model(settings.model, 10).eval()
            data = load_data(settings.data, settings.seed, settings.model.decoding)
            path = Path(directory) / name / MODEL_FILE
            path.parent.mkdir()
            export_onnx(model, path)
            exact = predict(onnx_classify(path), data.test, "in float32", 32)
            quantize_int8(path, file_for(path, "int8"), data.train, 32)
            accuracy = float((exact.argmax(1) == data.test.labels).mean())
            table.add_row(name, "fp32", "onnxruntime", share(name, accuracy), "", "", megabytes(path), "1.0")
            for precision in ("bf16", "int8"):
                file = file_for(path, precision)
                for said in measure(path, file, precision, exact, data, 1.0, 32):
                    table.add_row(
                        *("", precision, said.runtime, share(name, said.accuracy), share(name, said.changed)),
                        *(f"{said.largest_change:.1e}", megabytes(file), f"{said.speed:.1f}"),
                    )
    Console(width=140).print(table)


def share(name: str, value: float) -> str:
    return f"{value:.2%}" if name in TUNED else ""


def megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.0f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
