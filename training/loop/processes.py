"""The processes that share a run, as torchrun starts them: joined by NCCL on GPUs, by gloo on CPUs."""

import os

import torch
from accelerate import PartialState
from torch import nn

from serving.model.errors import UserError
from training.loop.cpu import take_threads


def join() -> PartialState:
    """Joins the processes of this run, and takes the CPUs that are given; one that was started alone is all there are.

    Raises UserError where fewer were joined than started: each would believe that it is alone, and write.
    """
    take_threads()
    started = os.environ.get("WORLD_SIZE", "1")
    try:
        # Accelerate joins processes on CPUs only where it is told that the CPU is meant.
        state = PartialState(cpu=not torch.cuda.is_available())
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
