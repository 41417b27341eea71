"""Tasks side by side: in processes of this machine, or on the nodes of a Ray cluster."""

import contextvars
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import torch
from prefect import Task, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner

from serving.batch.cluster import connect
from serving.model.cpus import cpus as given_cpus
from serving.model.errors import UserError, first_line, without_credentials
from training.loop.checkpoint import address, checkpoints_dir
from training.machine.devices import within

RETRIES = 3  # of a task whose process or node is lost
SECONDS_TO_SAY_SO = 20  # for those that are cancelled, to MLflow
STOPPED = "it was stopped with its flow"

_at_work = False  # whether this process is within `own`

Runner = Literal["in_turn", "processes", "ray"]
Run = Callable[[Task[..., Any], dict[str, Any]], Any]


class SideBySide(NamedTuple):
    """What begins a task with its parameters, and its `cpus` and `gpus`; and how many are at work at a time."""

    begin: Callable[..., Future[Any]]
    at_once: int


class Place(NamedTuple):
    """What runs a task to its end, what ends all that are at work, and how many there is room for."""

    run: Run
    stop: Callable[[], None]
    at_once: int


class _InTurn(Future[Any]):
    """Does its work when it is asked for the result: nothing of the one before is in memory then."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        return self._work()


@contextmanager
def side_by_side(runner: Runner, count: int, cpus: int, gpus: int, shared: Path | None = None) -> Iterator[SideBySide]:
    """As many of the `count` tasks run at a time as have their CPUs and GPUs.

    One whose process or node is lost begins again, elsewhere. A run that is cancelled, or killed, ends those at work as
    well, which note from where they go on. Raises UserError where there is no room for a single one.

    Args:
        shared: a folder of the state directory that every node of a cluster must see.
    """
    if runner == "in_turn":
        _require_room(cpus, gpus, given_cpus(), torch.cuda.device_count())
        yield SideBySide(lambda task, **parameters: _InTurn(lambda: task(**parameters, cpus=cpus)), 1)
        return
    place = _in_processes(count, cpus, gpus) if runner == "processes" else _on_ray(cpus, gpus, shared)
    with place as (run, stop, at_once), ThreadPoolExecutor(count) as threads:

        def begin(task: Task[..., Any], **parameters: Any) -> Future[Any]:
            return threads.submit(contextvars.copy_context().run, run, task, parameters)

        try:
            yield SideBySide(begin, at_once)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            stop()


@contextmanager
def own(cpus: int, gpus: str | None) -> Iterator[None]:
    """Lets a task take what it was given by `begin`, which its process has alone."""
    global _at_work
    _at_work = True
    try:
        with within(cpus, gpus):
            yield
    except Exception:
        raise
    except BaseException as error:
        if gpus is None:
            raise
        raise RuntimeError(STOPPED) from error  # Prefect would wait for ever for a process with what is no Exception
    finally:
        _at_work = False


def first_ended(begun: Collection[Future[Any]]) -> Future[Any]:
    """The first that has ended; a single one may still be at work."""
    return next(iter(begun)) if len(begun) == 1 else next(as_completed(begun))


@contextmanager
def _in_processes(count: int, cpus: int, gpus: int) -> Iterator[Place]:
    """A process for each task: one that is killed takes no other with it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",") if torch.cuda.device_count() else []
    _require_room(cpus, gpus, given_cpus(), len(devices))
    gpus = gpus or min(len(devices), 1)
    at_once = min(count, given_cpus() // (cpus or 1), len(devices) // gpus if gpus else count)
    cpus = cpus or given_cpus() // at_once
    free = SimpleQueue[str]()
    for first in range(0, at_once * gpus, gpus or 1):
        free.put(",".join(devices[first : first + gpus]))
    if not gpus:
        for _ in range(at_once):
            free.put("")
    # Its end, by whatever, is that of the flow.
    flow_s_end, flow_lives = multiprocessing.Pipe(duplex=False)
    os.register_at_fork(after_in_child=flow_lives.close)  # a data loader's worker may outlive the flow

    def run(task: Task[..., Any], parameters: dict[str, Any]) -> Any:
        devices_of_it = free.get()
        try:
            for _ in range(RETRIES + 1):
                if flow_lives.closed:
                    raise RuntimeError(STOPPED)
                with ProcessPoolTaskRunner(1, initializer=_begin_process, initargs=(flow_s_end,)) as process:
                    try:
                        return process.submit(task, {**parameters, "cpus": cpus, "gpus": devices_of_it}).result()
                    except BrokenProcessPool as error:
                        get_run_logger().warning("%s lost its process, and begins again: %s", task.name, error)
            raise _lost("it was killed")
        finally:
            free.put(devices_of_it)

    # Each process would start a server of its own where there is none.
    with get_client(sync_client=True) as api:
        server = temporary_settings({PREFECT_API_URL: str(api.api_url).rstrip("/")})
    with server, flow_s_end:
        yield Place(run, flow_lives.close, at_once)


def _begin_process(flow_s_end: Connection) -> None:
    """A process that is told to stop does what is done then; nobody tells it where the flow was killed."""

    def stop(number: int, frame: object) -> None:
        if not _at_work:  # Prefect's own work, as waiting for a retry: nothing is to be done then
            os._exit(128 + number)
        raise TerminationSignal(number)

    def end_with_the_flow() -> None:
        flow_s_end.poll(None)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(SECONDS_TO_SAY_SO)
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the flow tells
    threading.Thread(target=end_with_the_flow, daemon=True).start()


@contextmanager
def _on_ray(cpus: int, gpus: int, shared: Path | None) -> Iterator[Place]:
    """Ray gives each to a node, and that of a node that is lost to another one."""
    told = _addresses()
    if not find_spec("prefect_ray"):
        raise UserError("runner=ray needs the package prefect-ray, which is not installed\nInstall it: make scale")
    ray = connect("runner=ray", runtime_env={"env_vars": told})
    try:
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
        from ray.exceptions import RayError, RayTaskError

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        room = [(int(node["Resources"]["CPU"]), int(node["Resources"].get("GPU", 0))) for node in nodes]
        gpus = gpus or min(1, max((of_a_node for _, of_a_node in room), default=0))
        room = [each for each in room if each[1] >= gpus] or room
        _require_room(cpus, gpus, *max(room, default=(0, 0)))
        shares = (all_cpus // max(1, all_gpus // gpus if gpus else 1) for all_cpus, all_gpus in room)
        cpus = cpus or max(1, min(shares))
        _require_that_nodes_can(ray, nodes, told | ({"STATE_DIR": str(shared.absolute())} if shared else {}))
        begun: list[Any] = []
        stopped = threading.Event()

        def run(task: Task[..., Any], parameters: dict[str, Any]) -> Any:
            future = runner.submit(task, {**parameters, "cpus": cpus})
            begun.append(future.wrapped_future)
            if stopped.is_set():
                ray.cancel(future.wrapped_future)
            try:
                return future.result()
            except RayTaskError:
                raise
            except RayError as error:
                raise _lost(first_line(error)) from error

        def stop() -> None:
            stopped.set()
            for force in (False, True):  # at first as Ctrl-C does it
                _, at_work = ray.wait(begun, num_returns=len(begun), timeout=0) if begun else ([], [])
                for each in at_work:
                    ray.cancel(each, force=force)
                if at_work:
                    ray.wait(at_work, num_returns=len(at_work), timeout=SECONDS_TO_SAY_SO)

        at_once = sum(min(all_cpus // cpus, all_gpus // gpus if gpus else all_cpus) for all_cpus, all_gpus in room)
        with RayTaskRunner() as runner, remote_options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES):
            yield Place(run, stop, at_once)
    finally:
        ray.shutdown()


def _addresses() -> dict[str, str]:
    """The environment that all nodes share, but for passwords; UserError where it has no servers."""
    told = {"PREFECT_API_URL": PREFECT_API_URL.value(), "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI")}
    for name, server in told.items():
        if not (server or "").startswith("http"):
            raise UserError(f"{name}={server or ''}: with runner=ray all nodes ask one server\nGive its http address.")
    if os.environ.get("CHECKPOINTS"):
        told["CHECKPOINTS"] = address() or str(checkpoints_dir(Path()).absolute())
    return {name: without_credentials(str(value)) for name, value in told.items()}


def _require_that_nodes_can(ray: Any, nodes: list[dict[str, Any]], told: dict[str, str]) -> None:
    """Raises UserError for a node that lacks a package, or does not see the servers or CHECKPOINTS."""
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with ExitStack() as marks:
        seen = {
            name: value if "://" in value else marks.enter_context(_mark_in(Path(value)))
            for name, value in told.items()
        }
        asked = []
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            unseen = ray.remote(num_cpus=0, scheduling_strategy=there)(_unseen).remote(seen)
            asked.append((node["NodeManagerHostname"], unseen))
        for node, answer in asked:
            try:
                unseen = ray.get(answer)
            except RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"the node {node} of the Ray cluster can't train ({reason})\n"
                    "Give every node this checkout, and run make scale there."
                ) from error
            if unseen:
                raise UserError(
                    f"{unseen}={told[unseen]}: the node {node} of the Ray cluster does not see it\n"
                    "Give an address, or a path, that all nodes share."
                )


def _mark_in(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix=".")


def _unseen(told: dict[str, str]) -> str | None:
    """What a node does not see of the paths and servers it is told of; fails where it lacks a package."""
    import prefect_ray  # noqa: F401

    import training.train  # noqa: F401

    ports = {"http": 80, "https": 443}
    for name, value in told.items():
        parts = urlsplit(value)
        try:
            if parts.hostname and parts.scheme in ports:  # a storage is asked by the first who needs it
                socket.create_connection((parts.hostname, parts.port or ports[parts.scheme]), 10).close()
            elif "://" not in value and not os.path.exists(value):
                return name
        except OSError:
            return name
    return None


def _lost(why: str) -> UserError:
    return UserError(
        f"it began {RETRIES + 1} times, and its process was lost each time: {why}\n"
        "For want of memory, most likely: let fewer run at a time, or make trainer.batch_size smaller."
    )


def _require_room(cpus: int, gpus: int, all_cpus: int, all_gpus: int) -> None:
    for name, asked, there in (("cpus", cpus, all_cpus), ("gpus", gpus, all_gpus)):
        if asked > there:
            raise UserError(f"{name}={asked} for each, where the largest machine has {there}\nGive no more than that.")
