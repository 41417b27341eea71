"""An ONNX file in INT8, with 8-bit weights and activations, or in fp16; and how much faster that is."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from serving.model.contract import INPUT
from training.data.pictures import Pictures
from training.progress import progress
from training.quality.evaluation import Classify

CALIBRATION_PICTURES = 512
LAYERS = ["Conv", "Gemm", "MatMul"]
# With these after them: 8 bits are spent on what passes through, not on what is cut off.
ACTIVATIONS = ["Relu", "Clip"]
# Where all in INT8 lose too much, most of that comes from the first: see docs/figures.md.
FIRST_LAYERS = 3


def quantize_int8(
    source: Path,
    target: Path,
    pictures: Pictures,
    batch_size: int,
    exact_layers: int = 0,
    at_most: int = CALIBRATION_PICTURES,
    **calibration: Any,
) -> None:
    """Writes `source` with INT8 layers to `target`: static, per channel, in QDQ format.

    Preprocessing and softmax stay in float32, and so do the file's inputs, outputs and metadata. The first of the
    pictures give the ranges of the activations.

    Args:
        exact_layers: how many of the first layers with weights stay in float32.
        at_most: how many pictures count.
        calibration: how `quantize_static` finds the ranges; by default the smallest and the largest value count.
    """
    some = pictures.subset(np.arange(min(at_most, len(pictures))))
    with tempfile.TemporaryDirectory() as directory:
        prepared = Path(directory) / source.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Batches(some, batch_size),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in _layers(onnx.load(prepared))[:exact_layers]],
            **calibration,
        )


def _layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The layers with weights, in order."""
    weights = {each.name for each in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in LAYERS and weights & set(node.input)]


def convert_to_fp16(source: Path, target: Path) -> None:
    """Writes `source` with layers in fp16, for GPUs, to `target`; preprocessing and softmax stay in float32."""
    model = onnx.load(source)
    names = [node.name for node in model.graph.node]
    first = names.index(_layers(model)[0].name)
    exact = [*names[:first], names[-1]]
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=exact), target)


class _Batches(CalibrationDataReader):
    """Pictures as the calibration reads them."""

    def __init__(self, pictures: Pictures, batch_size: int) -> None:
        batches = progress(pictures.batches(batch_size), "finding the ranges of int8")
        self.batches: Iterator[dict[str, np.ndarray]] = ({INPUT: images} for _, images in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def speed_ratio(faster: Classify, slower: Classify, images: np.ndarray, rounds: int = 9) -> float:
    """How many times as many pictures `faster` answers in the same time: the median of turns taken one by one."""

    def seconds(classify: Classify) -> float:
        start = time.perf_counter()
        classify(images)
        return time.perf_counter() - start

    seconds(faster), seconds(slower)  # the first calls allocate
    return float(np.median([seconds(slower) / seconds(faster) for _ in range(rounds)]))
