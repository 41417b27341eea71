"""The processes and devices that a run computes on.

Processes are started by torchrun, and joined by NCCL on GPUs, by gloo on CPUs.
"""

import logging
import os
from collections.abc import Callable
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import Tensor, nn

from serving.model.cpus import cpus
from serving.model.errors import UserError
from serving.model.pictures.memory import mallopt

log = logging.getLogger(__name__)

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def join() -> PartialState:
    """Joins the processes of this run, and takes the CPUs that are given; one that was started alone is all there are.

    Raises UserError where fewer were joined than started: each would believe that it is alone, and write.
    """
    take_threads()
    started = os.environ.get("WORLD_SIZE", "1")
    try:
        # Accelerate joins processes on CPUs only where it is told that the CPU is meant.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))  # decoding takes its time
        reason = f"{state.num_processes} joined"
    except ValueError as error:
        reason = str(error)
    else:
        if state.num_processes >= int(started):  # mpirun says so in other variables
            return state
    raise UserError(
        f"WORLD_SIZE={started} says that {started} processes share this run, which they don't: {reason}.\n"
        f"Start them with torchrun --nproc_per_node={started} -m training.train ..., or unset WORLD_SIZE."
    )


def copy_buffers_from_first(model: nn.Module) -> None:
    """Makes the buffers of all processes those of the first: on CPUs each keeps statistics of batch norm of its own."""
    if torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def workers(asked: int | str, processes: int) -> int:
    """How many processes augment pictures for each of those that train; `auto` leaves these a CPU each.

    On a CPU none by default, as they would only take turns with the network on the same cores.
    """
    if asked != "auto":
        return min(int(asked), cpus())
    return max(0, cpus() // processes - 1) if torch.cuda.is_available() else 0


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
    """Lets PyTorch compute in as many threads as CPUs are given; where OMP_NUM_THREADS is set, it is left to that.

    `recorded` are the threads that a run began with: it goes on with them where so many CPUs are given, since sums in
    another order have other last digits.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(recorded or cpus(), cpus()))
    if recorded not in (None, threads := torch.get_num_threads()):
        log.warning("threads: this run began with %d and goes on with %d, so last digits may differ", recorded, threads)


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
