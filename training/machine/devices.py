"""The CPUs and GPUs that are given, and how they are used."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from serving.model.cpus import cpus
from serving.model.pictures.memory import mallopt

log = logging.getLogger(__name__)

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def own_cpus() -> int:
    """This process's share of the CPUs that are given: those of this machine that share a run divide them."""
    return max(1, cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def workers(asked: int | str) -> int:
    """How many processes augment pictures for each of those that train; `auto` leaves these a CPU each.

    On a CPU none by default, as they would only take turns with the network on the same cores.
    """
    if asked != "auto":
        return min(int(asked), cpus())
    return own_cpus() - 1 if torch.cuda.is_available() else 0


def prepare() -> None:
    """Lets GPUs multiply float32 in TF32 and look for the quickest convolutions, and CPUs keep their memory."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True  # every batch of an epoch has one size
    else:
        keep_freed_memory()


def precision(name: str) -> str:
    """The precision that `auto` stands for: bf16 where the hardware has it; fp16 on older GPUs."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def take_threads(recorded: int | None = None) -> None:
    """Lets PyTorch compute in as many threads as it has CPUs; where OMP_NUM_THREADS is set, it is left to that.

    `recorded` are the threads that a run began with: it goes on with them where so many CPUs are given, since sums in
    another order have other last digits.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(recorded or own_cpus(), own_cpus()))
    if recorded not in (None, threads := torch.get_num_threads()):
        log.warning("threads: this run began with %d and goes on with %d, so last digits may differ", recorded, threads)


@contextmanager
def within(cpus: int, gpus: str | None = None) -> Iterator[None]:
    """Lets what is trained in the block take so many CPUs of this process; 0: all it has. It sees these GPUs alone."""
    taken: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None else {}
    if cpus:
        taken |= {"SERVING_THREADS": str(cpus), "OMP_NUM_THREADS": None}  # which counts more
    before, threads = {name: os.environ.get(name) for name in taken}, torch.get_num_threads()
    _set_environment(taken)
    if cpus:
        torch.set_num_threads(cpus)
    try:
        yield
    finally:
        _set_environment(before)
        torch.set_num_threads(threads)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        os.environ |= {name: value} if value is not None else {}


def keep_freed_memory() -> None:
    """Makes malloc keep what is freed for the next tensor of that size, where the C library is glibc.

    By default every large tensor is mapped anew and unmapped again, and each of its pages faults in and is zeroed by
    the kernel: a third of a training step. PyTorch's tuning guide recommends another allocator for the same reason.
    """
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 * 2**20)


def depthwise_in_float32(model: nn.Module) -> None:
    """Takes depthwise convolutions out of bf16 autocast on a CPU.

    oneDNN's bf16 backward of 5x5 and of strided ones takes three to fifteen times as long as in float32.
    """

    def in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(pixels: Tensor) -> Tensor:
            with torch.autocast(pixels.device.type, enabled=False):
                return forward(pixels.float()).to(pixels.dtype)

        return run

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = in_float32(module.forward)  # type: ignore[assignment]
