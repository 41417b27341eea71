"""What runs an ONNX file: ONNX Runtime, or OpenVINO for a CPU's bf16 and INT8 units. No other file knows of them."""

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from serving.model.contract import INPUT, OUTPUT
from serving.model.cpus import cpus
from serving.model.errors import UserError
from serving.model.pictures.memory import LARGE
from serving.model.precision import Precision

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Runtime(Protocol):
    """An ONNX file, ready to run.

    Attributes:
        name: onnxruntime or openvino.
        units: what computes, in order of preference.
        properties: the file's metadata.
    """

    name: str
    units: list[str]
    properties: dict[str, str]

    def run(self, images: np.ndarray, *, all_cores: bool) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB -> probabilities float32 (N, classes).

        With `all_cores` a CPU's cores share the work, which is right where nothing else runs meanwhile; else each call
        has one: threads that share the work on one picture wait for one another.
        """


def open_file(path: Path, precision: Precision = "fp32", providers: Sequence[str] = (CPU,), name: str = "") -> Runtime:
    """Loads a file for a precision, by the runtime that is named, or else the quickest that is here.

    Raises UserError where none here has the precision; what a runtime raises where the file is not one of its kind.
    """
    name = name or quickest(precision, providers)
    return OpenVino(path, precision) if name == "openvino" else OnnxRuntime(path, providers)


def properties_of(path: Path) -> dict[str, str]:
    """A file's metadata, by what reads it without preparing it to run."""
    return _metadata(_core().read_model(path)) if has_openvino() else OnnxRuntime(path, (CPU,)).properties


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def quickest(precision: Precision, providers: Sequence[str] = (CPU,)) -> str:
    """The runtime that is quickest here for a precision; raises UserError, with the reason, where there is none."""
    available = _available(providers)
    if precision == "fp16" and available[0] != CUDA:
        raise UserError("SERVING_PRECISION=fp16 needs a GPU with CUDA, and there is none here; choose another one")
    if precision in ("fp32", "fp16"):
        return "onnxruntime"
    if available[0] != CPU:
        raise UserError(
            f"SERVING_PRECISION={precision} is for CPUs, and SERVING_PROVIDERS begins with {available[0]} here\n"
            f"Set SERVING_PROVIDERS={CPU}, or another precision."
        )
    if precision == "int8":
        return "openvino" if has_openvino() else "onnxruntime"
    if not has_openvino():
        raise UserError("SERVING_PRECISION=bf16 needs the package openvino, which is not installed; install it")
    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("SERVING_PRECISION=bf16 needs a CPU that computes in bf16, which this one does not; set fp32")
    return "openvino"


def runtimes(precision: Precision) -> list[str]:
    """The runtimes on this CPU that have a precision, the quickest first."""
    try:
        first = quickest(precision)
    except UserError:
        return []
    return [first, "onnxruntime"] if first == "openvino" and precision == "int8" else [first]


def _available(providers: Sequence[str]) -> list[str]:
    known = onnxruntime.get_available_providers()
    available = [name for name in providers if name in known]
    if not available:
        raise UserError(
            f"SERVING_PROVIDERS={','.join(providers)}: the installed ONNX Runtime has only {', '.join(known)}"
        )
    return available


class OnnxRuntime:
    """ONNX Runtime, in the precision that the file has."""

    name = "onnxruntime"

    def __init__(self, path: Path, providers: Sequence[str]) -> None:
        available, threads = _available(providers), cpus()
        self._on_all_cores = self._session(path, available, threads)
        one_core = available[0] == CPU and threads > 1
        self._on_one_core = self._session(path, available, 1) if one_core else self._on_all_cores
        self.units: list[str] = self._on_all_cores.get_providers()
        self.properties: dict[str, str] = self._on_all_cores.get_modelmeta().custom_metadata_map

    def _session(self, path: Path, providers: Sequence[str], threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Between runs, threads that spin while they wait take the cores that decode pictures and answer requests.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(path, options, providers=providers)

    def run(self, images: np.ndarray, *, all_cores: bool) -> np.ndarray:
        options = None
        if images[..., 0].size > LARGE and self.units == [CPU]:
            # The arena would keep for good what a model that is fed at full size needs for it.
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        session = self._on_all_cores if all_cores else self._on_one_core
        (probabilities,) = session.run([OUTPUT], {INPUT: images}, options)
        return probabilities


class OpenVino:
    """OpenVINO on the CPU: a file of float32 in bf16, or an INT8 file whose other layers are in float32."""

    name = "openvino"

    def __init__(self, path: Path, precision: Precision) -> None:
        core, threads = _core(), cpus()
        model = core.read_model(path)
        self.properties = _metadata(model)
        self.units = ["CPU"]
        hint = "bf16" if precision == "bf16" else "f32"
        self._on_all_cores, self._on_one_core = (
            core.compile_model(
                model,
                "CPU",
                {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads},
            )
            for streams in (1, threads)
        )
        self._local = threading.local()  # a request of its own for each thread

    def run(self, images: np.ndarray, *, all_cores: bool) -> np.ndarray:
        kind = "all" if all_cores else "one"
        if not hasattr(self._local, kind):
            model = self._on_all_cores if all_cores else self._on_one_core
            setattr(self._local, kind, model.create_infer_request())
        answers = getattr(self._local, kind).infer({INPUT: images})
        return np.array(answers[OUTPUT])  # the request's own memory holds the next answer soon


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _metadata(model: Any) -> dict[str, str]:
    """An ONNX file's metadata, as OpenVINO keeps it."""
    about = model.get_rt_info()
    return {name: value.astype(str) for name, value in about["framework"].items()} if "framework" in about else {}
