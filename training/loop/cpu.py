"""What only training on a CPU needs."""

import logging
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from serving.model.cpus import cpus
from serving.model.pictures.memory import mallopt

log = logging.getLogger(__name__)

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


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


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16."""
    return torch.cpu._is_avx512_bf16_supported()


def depthwise_in_float32(model: nn.Module) -> None:
    """Takes depthwise convolutions out of bf16 autocast.

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
