"""What runs an ONNX file: ONNX Runtime, or OpenVINO for a CPU's bf16 and INT8 units. No other file knows of them."""

import platform
import sys
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
from serving.model.precision import Choice, Precision

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


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


# The runtimes that have a precision beside float32, the quickest first.
RUNTIMES: dict[Precision, tuple[str, ...]] = {
    "bf16": ("openvino",),
    "int8": ("openvino", "onnxruntime"),
    "fp16": ("onnxruntime",),
}


def open_file(
    path: Path, precision: Precision = "fp32", runtime: str = "onnxruntime", providers: Sequence[str] = (CPU,)
) -> Runtime:
    """Loads a file; raises UserError where ONNX Runtime gets none of the providers, and whatever a runtime raises."""
    if runtime == "openvino":
        return OpenVino(path, precision)
    opened = OnnxRuntime(path, providers)
    if precision == "fp16" and opened.units[0] == CPU:  # it goes on without a provider that fails
        raise UserError(f"fp16 is for GPUs, and ONNX Runtime got none: {CUDA} failed, as it says above")
    return opened


def providers_for(precision: Choice) -> Sequence[str]:
    """ONNX Runtime's providers that a precision is measured with."""
    return (CUDA, CPU) if precision == "fp16" else (CPU,)


def is_for(precision: Precision, providers: Sequence[str]) -> bool:
    """Whether a precision is for what computes here: fp16 for GPUs, bf16 and int8 for CPUs."""
    return (precision == "fp16") == (available(providers)[0] != CPU)


def obstacle(precision: Precision, runtime: str, providers: Sequence[str] = (CPU,)) -> str:
    """Why a runtime can't answer in a precision here; empty: it can."""
    if not is_for(precision, providers):
        first, device, right = available(providers)[0], *(("GPUs", CUDA) if precision == "fp16" else ("CPUs", CPU))
        return f"{precision} is for {device}, and SERVING_PROVIDERS begins with {first} here; set it to {right}"
    if runtime == "openvino" and not has_openvino():
        return "the package openvino is not installed"
    if precision == "int8" and not _adds_8_bit_products_exactly():
        return "this CPU has no VNNI, without which sums of 8-bit products are cut off and many answers change"
    if precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this CPU does not compute in bf16"
    return ""


def runtimes(precision: Precision) -> list[str]:
    """The runtimes on this machine that have a precision beside float32, the quickest first."""
    return [runtime for runtime in RUNTIMES[precision] if not obstacle(precision, runtime, providers_for(precision))]


@cache
def _adds_8_bit_products_exactly() -> bool:
    """x86's older instructions add two such products in 16 bits; other CPUs have no such limit."""
    if platform.machine() != "x86_64":
        return True
    return bool({"avx512_vnni", "avx_vnni"} & set(Path("/proc/cpuinfo").read_text().split()))


@cache
def has_openvino() -> bool:
    try:
        _core()
    except ImportError:
        return False
    return True


def default_providers() -> tuple[str, ...]:
    """The CPU, and before it CUDA where the installed build of ONNX Runtime is for GPUs."""
    return tuple(name for name in (CUDA, CPU) if name in onnxruntime.get_available_providers())


def available(providers: Sequence[str]) -> list[str]:
    """Those of ONNX Runtime's providers that its installed build has; UserError where that is none."""
    known = onnxruntime.get_available_providers()
    if not (found := [name for name in providers if name in known]):
        raise _refusal(providers, f"the installed ONNX Runtime has only {', '.join(known)}")
    return found


def missing(providers: Sequence[str], units: Sequence[str]) -> list[str]:
    """The providers that were asked for and that ONNX Runtime, which got `units`, goes on without, with the reasons."""
    known = onnxruntime.get_available_providers()
    reasons = {True: "it failed, and the log has ONNX Runtime's reason", False: "the installed ONNX Runtime lacks it"}
    return [f"{name}: {reasons[name in known]}" for name in providers if name not in units]


def _refusal(providers: Sequence[str], reason: str) -> UserError:
    return UserError(f"SERVING_PROVIDERS={','.join(providers)}: {reason}\nAdd {CPU} to compute without, or unset it.")


@cache
def _load_cuda() -> None:
    """Loads NVIDIA's libraries from their packages, where no linker looks for them."""
    onnxruntime.preload_dlls()


class OnnxRuntime:
    """ONNX Runtime, in the precision that the file has."""

    name = "onnxruntime"

    def __init__(self, path: Path, providers: Sequence[str]) -> None:
        found, threads = available(providers), cpus()
        if CUDA in found:
            _load_cuda()
        self._on_all_cores = self._session(path, found, threads)
        self.units: list[str] = self._on_all_cores.get_providers()
        if not {*self.units} & {*providers}:  # it takes the CPU instead of what fails, asked or not
            raise _refusal(providers, "it failed, as ONNX Runtime says above")
        one_core = self.units[0] == CPU and threads > 1
        self._on_one_core = self._session(path, [CPU], 1) if one_core else self._on_all_cores
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
        threads = cpus()
        self._model = _core().read_model(path)
        self._hint = "bf16" if precision == "bf16" else "f32"
        about = dict(self._model.get_rt_info().items()).get("framework", {})  # the file's metadata, if it has any
        self.properties = {name: value.astype(str) for name, value in about.items()}
        self.units = ["CPU"]
        self._on_all_cores = self._compiled(streams=1)
        self._on_one_core = self._compiled(streams=threads) if threads > 1 else self._on_all_cores
        self._local = threading.local()  # a request of its own for each thread

    def _compiled(self, streams: int) -> Any:
        properties = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": cpus(),
            "NUM_STREAMS": streams,
            # By default it leaves hyper-threads out, and pins its threads to the first cores, which others have too.
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
        }
        return _core().compile_model(self._model, "CPU", properties)

    def run(self, images: np.ndarray, *, all_cores: bool) -> np.ndarray:
        pixels = images.shape[1] * images.shape[2]
        if pixels > LARGE:
            # It would keep for good what the largest picture needs. Such are rare: very long ones, since others are
            # decoded to a fraction of their size.
            request, at_once = self._compiled(streams=1).create_infer_request(), 1
        else:
            kind = "all" if all_cores else "one"
            if not hasattr(self._local, kind):
                model = self._on_all_cores if all_cores else self._on_one_core
                setattr(self._local, kind, model.create_infer_request())
            request, at_once = getattr(self._local, kind), LARGE // pixels
        # The answers are copies: the request's own memory holds the next ones soon.
        answers = [
            request.infer({INPUT: images[start : start + at_once]}, share_inputs=True, share_outputs=False)[OUTPUT]
            for start in range(0, len(images), at_once)
        ]
        return np.concatenate(answers)


@cache
def _core() -> Any:
    # At its import this part, which converts other formats, would report its use to Google.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()
