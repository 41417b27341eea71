"""The classifier as an ONNX file, and whether that answers as it does."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from serving.model.contract import INPUT, OUTPUT
from serving.model.precision import Precision
from serving.model.runtime import CPU, open_file
from training.model.classifier import ImageClassifier
from training.quality.evaluation import Classify

logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # it tells every tensor that it merges

OPSET = 20
PROBABILITY_TOLERANCE = 1e-3
TIE = 1e-4  # two classes closer than this in the expected answer are a tie: either is right


class _Probabilities(nn.Module):
    """The classifier as it is served: softmax included."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).softmax(1)


def export_onnx(classifier: ImageClassifier, path: Path) -> None:
    """Writes `images` uint8 (N, H, W, 3) -> `probabilities` float32 (N, classes), for any N, H and W."""
    example = torch.zeros(2, 40, 48, 3, dtype=torch.uint8)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    module = _Probabilities(classifier.cpu().eval())
    for part in module.modules():
        if hasattr(part, "fused_attn"):  # timm's: the exporter follows the plain form in every model
            part.fused_attn = False  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": dimensions},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = cast(ONNXProgram, program).model_proto
    onnx.checker.check_model(model)
    onnx.save(model, path)


def onnx_classify(
    path: Path, precision: Precision = "fp32", runtime: str = "onnxruntime", providers: Sequence[str] = (CPU,)
) -> Classify:
    """An ONNX file, which needs no metadata yet, as a function of arrays."""
    return partial(open_file(path, precision, runtime, providers).run, all_cores=True)


@dataclass(frozen=True)
class Parity:
    """The largest difference of a probability, and the pictures with another top-1 class, ties left out."""

    max_difference: float
    disagreements: int

    @property
    def holds(self) -> bool:
        return self.max_difference <= PROBABILITY_TOLERANCE and self.disagreements == 0


def parity(expected: np.ndarray, actual: np.ndarray) -> Parity:
    """Compares probabilities (N, classes) picture by picture."""
    rows = np.arange(len(expected))
    gap = expected.max(axis=1) - expected[rows, actual.argmax(axis=1)]
    return Parity(float(np.abs(expected - actual).max()), int((gap > TIE).sum()))
