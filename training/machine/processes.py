"""The processes that share a run: started by torchrun's launcher, and joined by NCCL on GPUs, by gloo on CPUs."""

import logging
import logging.handlers
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from copy import copy
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import NoReturn, ParamSpec, TypeVar

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from serving.model.errors import UserError, WordedError, in_words
from training.machine.devices import take_threads

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SECONDS_TO_STOP = 20  # for a process that is told to, before it is killed
SECONDS_FOR_THE_CAUSE = 2  # in which a process that died without a word is noticed before those that miss it


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


def processes(asked: int | str) -> int:
    """How many share a run: those that torchrun has started, or as many as `trainer.processes` asks for.

    Raises UserError where so many can't.
    """
    joined, gpus = join().num_processes, torch.cuda.device_count()
    if asked == "gpu" and not gpus:
        raise UserError(
            "trainer.processes=gpu: there is no GPU here\nGive a number of processes, which share the CPUs, or none."
        )
    count = gpus if asked == "gpu" else int(asked)
    if gpus and count > gpus:
        raise UserError(
            f"trainer.processes={asked}: each process needs a GPU of its own, and there are {gpus}\n"
            f"Give {gpus} or fewer, or trainer.processes=gpu for all that are there."
        )
    if 1 != joined != count != 1:
        raise UserError(
            f"trainer.processes={asked}: torchrun has started {joined} already\n"
            "Leave trainer.processes out, or start the command without torchrun."
        )
    return max(joined, count)


def in_processes(asked: int | str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a module's function returns in the first of the processes that `trainer.processes` asks for; all call it.

    What the first one logs is logged here, and what one of them raises is raised here, after all have been stopped.
    They are stopped as well when this process is told to stop, and stop when it is killed.
    """
    count = processes(asked)
    if count == join().num_processes:
        return function(*args, **kwargs)
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):  # what they say of failures is said in words
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    with tempfile.TemporaryDirectory(prefix="processes-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="",  # whoever started this process has handlers, whose exceptions stop the others
            shutdown_timeout=SECONDS_TO_STOP,
        )
        config.numa_options = None  # which are torchrun's where there are GPUs, and would take CPUs away
        try:
            with _reports(count) as (senders, errors):
                work = (senders, log.getEffectiveLevel(), function, args, kwargs)
                returned: T = elastic_launch(config, _work)(*work)[0]
                return returned
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            error = errors.get(rank) or _ended_without_a_word(rank, count, failure)
    raise error


def _work(
    senders: list[Connection], level: int, function: Callable[..., T], args: tuple, kwargs: dict[str, object]
) -> T:
    """Calls the function in a process that the launcher has started, which sends an error, and the first its log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the process that started this one, too
    signal.signal(signal.SIGTERM, _stop)
    Thread(target=_stop_with_parent, daemon=True).start()
    rank = int(os.environ["RANK"])
    handler = logging.NullHandler() if rank else _Sender(senders[rank])  # type: ignore[arg-type]
    logging.root.handlers = [handler]
    logging.root.setLevel(level)
    try:
        return function(*args, **kwargs)
    except Exception as error:
        _send(error, senders[rank])
        if not isinstance(error, WordedError):  # it may be that another process is not there any more
            time.sleep(SECONDS_FOR_THE_CAUSE)
        sys.exit(1)


def _stop(number: int, frame: object) -> NoReturn:
    """Ends this process by way of what has to be closed, such as the run in MLflow, which no second signal breaks."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _stop_with_parent() -> None:
    """Ends this process once the one that started it is gone, however that ended."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_STOP)
        os.kill(os.getpid(), signal.SIGKILL)


def _send(error: Exception, sender: Connection) -> None:
    """Sends an error in its words where it has some, for what it came from stays here; else with its traceback."""
    if (words := in_words(error)) and not isinstance(error, WordedError):
        error = UserError(words)
    elif not words:
        error.add_note("In the process that raised it:\n" + "".join(traceback.format_exception(error)))
    try:
        copy(error)  # as it is put together at the other end
        sender.send(error)
    except Exception:  # classes of errors have their own reasons
        sender.send(RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__])))


def _ended_without_a_word(rank: int, count: int, failure: ProcessFailure) -> UserError:
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
    return UserError(
        f"process {rank + 1} of {count} {how}, and the others were stopped; the memory may have been too small\n"
        "Asked for again, the run goes on from its last checkpoint."
    )


class _Sender(logging.handlers.QueueHandler):
    """Sends records into a connection."""

    def enqueue(self, record: logging.LogRecord) -> None:
        record.name = record.name.replace("__mp_main__", "__main__")  # of which it is a copy
        self.queue.send(record)  # type: ignore[attr-defined]


@contextmanager
def _reports(count: int) -> Iterator[tuple[list[Connection], dict[int, Exception]]]:
    """A connection for each process, whose log records are logged here, and their errors by rank, whole at the end."""
    receivers, senders = map(list, zip(*(multiprocessing.Pipe(duplex=False) for _ in range(count)), strict=True))
    errors: dict[int, Exception] = {}

    def receive() -> None:
        unread = list(receivers)
        while unread:
            ready = wait(unread)
            for receiver in [each for each in unread if each in ready]:
                try:
                    report = receiver.recv()
                except (EOFError, OSError):  # the latter in the middle of what a killed process has sent
                    unread.remove(receiver)
                    continue
                if isinstance(report, Exception):
                    errors[receivers.index(receiver)] = report
                elif (logger := logging.getLogger(report.name)).isEnabledFor(report.levelno):
                    logger.handle(report)

    # Prefect's handler asks the context which run a record belongs to.
    thread = Thread(target=copy_context().run, args=(receive,), daemon=True)
    thread.start()
    try:
        yield senders, errors
    finally:
        for sender in senders:
            sender.close()
        thread.join(SECONDS_TO_STOP)


def copy_buffers_from_first(model: nn.Module) -> None:
    """Makes the buffers of all processes those of the first: on CPUs each keeps statistics of batch norm of its own."""
    if torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
