"""The nodes of a Ray cluster as the engine of a batch. Ray is imported where a cluster is asked for."""

import logging
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from serving.batch import node
from serving.batch.scoring import Limits
from serving.batch.sources import Portion, Source
from serving.model.cpus import cpus
from serving.model.errors import RegistryError, UserError, first_line
from serving.model.predictor import Predictor
from serving.model.runtime import CUDA

log = logging.getLogger(__name__)

CPUS_OF_A_TASK = 8  # at most: what is Python's own takes turns in a process
TRIES = 3  # of a part whose processes are killed on nodes that live on
NODES = 10  # that may be lost with the same part
SECONDS_TO_ANSWER = 10
SECONDS_TO_BE_READY = 120
SECONDS_TO_LOOK_ROUND = 60


class Cluster:
    """The Ray cluster at RAY_ADDRESS, or one of this machine's CPUs alone, until it is closed.

    Raises UserError where Ray is not installed, or no cluster answers, and RegistryError where all nodes are lost.
    """

    def __init__(self) -> None:
        ray = connect("engine=ray")
        self._nodes = [each for each in ray.nodes() if each["Alive"] and each["Resources"].get("CPU", 0) >= 1]
        if not self._nodes:
            ray.shutdown()
            raise UserError(f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}: the cluster has no node with CPUs")
        self._cpus = int(min(CPUS_OF_A_TASK, *(each["Resources"]["CPU"] for each in self._nodes)))
        self._predictor: Predictor | None = None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def take(self, predictor: Predictor) -> None:
        """Copies a predictor's files to where all nodes get them; they may be gone from the disk afterwards."""
        import ray

        if predictor is not self._predictor:
            files = node.files_of(predictor)
            self._predictor, self._files, self._hashes = predictor, ray.put(files), node.hashes_of(files)

    def prepare(self, source: Source, predictor: Predictor, limits: Limits) -> None:
        """Has every node load the predictor and read the first picture.

        Raises UserError where a node can't, lacks something, or would answer otherwise than this machine.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        self.take(predictor)
        # Where only some nodes have one, all answer by their CPUs.
        gpus = int(CUDA in predictor.providers and all(each["Resources"].get("GPU", 0) >= 1 for each in self._nodes))
        self._at_once = sum(self._tasks_on(each["Resources"], gpus) for each in self._nodes)
        job = node.job_of(source, predictor, limits, self._files, self._hashes, self._cpus, gpus)
        self._job = [ray.put(job)], node.program()
        # What is lost is tried again below: Ray itself would go on for ever where memory runs out.
        self._options: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": gpus, "max_retries": 0}
        task: Any = ray.remote(**self._options)(node.ready)
        asked = {
            task.options(scheduling_strategy=On(each["NodeID"], soft=False)).remote(*self._job): each
            for each in self._nodes
        }
        answered, busy = ray.wait([*asked], num_returns=len(asked), timeout=SECONDS_TO_BE_READY)
        for each in answered:
            _require_ready(each, asked[each]["NodeManagerHostname"])
        for each in busy:  # with somebody else's work: it is asked again when it has its first part
            log.warning("the node %s has not answered yet", asked[each]["NodeManagerHostname"])
            ray.cancel(each)

    def score(self, portions: Iterable[tuple[int, Portion]]) -> Iterator[tuple[int, pa.Table]]:
        """Yields the table of each portion with its number, as they are done.

        What a lost node was at work on is done by another one. A part whose process is killed is tried again when all
        others are done; UserError where it dies of that as well.
        """
        import ray
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

        task: Any = ray.remote(**self._options)(node.scored)
        waiting, again = iter(portions), deque[tuple[int, Portion]]()
        running: dict[Any, tuple[int, Portion]] = {}
        killed, lost = Counter[int](), Counter[int]()
        while True:
            while len(running) < 2 * self._at_once:  # each has one more to go on with
                if not (work := next(waiting, None) or (again.popleft() if again else None)):
                    break
                running[task.remote(*self._job, work[1])] = work
            if not running:
                return
            ended, _ = ray.wait([*running], num_returns=1, timeout=SECONDS_TO_LOOK_ROUND)
            if not ended:
                self._require_a_node()
                continue
            number, portion = running.pop(done := ended[0])
            try:
                table = ray.get(done)
            except RayTaskError as error:
                raise _cause(error, "a node of the Ray cluster") from error
            except (OutOfMemoryError, WorkerCrashedError) as error:
                killed[number] += 1
                _require_less(killed[number], TRIES, number, "killed the process at work on it", error)
                again.append((number, portion))
            except RayError as error:
                lost[number] += 1
                _require_less(lost[number], NODES, number, "was lost with its node", error)
                again.append((number, portion))
            else:
                yield number, table

    def _require_a_node(self) -> None:
        """Ray itself would wait for one for ever."""
        import ray

        if not any(each["Alive"] and each["Resources"].get("CPU", 0) >= self._cpus for each in ray.nodes()):
            raise RegistryError(f"no node of the Ray cluster is left that has {self._cpus} CPUs; the parts done stay")

    def _tasks_on(self, resources: dict[str, float], gpus: int) -> int:
        return int(min(resources["CPU"] // self._cpus, resources["GPU"] if gpus else resources["CPU"]))


def _require_less(times: int, most: int, number: int, what: str, error: Exception) -> None:
    reason = first_line(error)
    log.warning("part %06d %s: %s", number, what, reason)
    if times >= most:
        raise UserError(
            f"part {number:06d} {what} {times} times ({reason:.300})\n"
            "Its pictures are too much for a node: give the nodes more memory, or set SERVING_MAX_BATCH=1; the other "
            "parts stay."
        ) from error


def _require_ready(answer: Any, name: str) -> None:
    import ray
    from ray.exceptions import NodeDiedError, RayError, RayTaskError, TaskUnschedulableError

    try:
        ray.get(answer)
    except RayTaskError as error:
        raise _cause(error, f"the node {name}") from error
    except (NodeDiedError, TaskUnschedulableError) as error:  # the others go on
        log.warning("the node %s is lost: %s", name, error)
    except RayError as error:
        reason = first_line(error)
        raise UserError(
            f"the node {name} can't load the model: its process died ({reason:.300})\nGive it more memory."
        ) from error


def _cause(error: Any, where: str) -> Exception:
    """What a task failed with; a node that lacks the program can't say it in its own words."""
    from ray.exceptions import RaySystemError

    cause = error.cause
    if isinstance(cause, ImportError | RaySystemError) or "failed to import on the worker" in str(cause):
        lines = [line.strip() for line in str(cause).splitlines() if "Error: " in line] or [str(cause)]
        return UserError(
            f"{where} can't run this program ({lines[-1]:.300})\n"
            "Give every node this checkout at the same path, and run make scale there."
        )
    return cause


def connect(asked: str, **more: Any) -> Any:
    """Ray, connected to the cluster at RAY_ADDRESS or to one of its own; raises UserError as Cluster does.

    `asked` is the argument that asks for it; `more` goes to ray.init.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"{asked} needs the package ray, which is not installed\nInstall it: make scale") from error
    address = os.environ.get("RAY_ADDRESS", "")
    _require_answer(address)
    handler = signal.getsignal(signal.SIGTERM)
    more = {"logging_level": "error", "log_to_driver": False, **more}
    try:
        if address:
            ray.init(address, **more)
        else:
            ray.init("local", num_cpus=cpus(), include_dashboard=False, **more)
    except (Exception, SystemExit) as error:  # it exits where what answers is no cluster
        raise _no_answer(address, error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would pass by what is done when a run is cancelled
    return ray


def _require_answer(address: str) -> None:
    """Ray itself would wait for minutes, and exit."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: BaseException) -> UserError:
    reason = first_line(error)
    return UserError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason})\n"
        "Give the address of one, such as HOST:6379 on a node of it, or unset it to use this machine alone."
    )
