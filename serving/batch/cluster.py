"""Nodes of a Ray cluster that score portions of a source. Ray is imported where a cluster is asked for."""

import itertools
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa

from serving.batch.scoring import Limits, Scorer
from serving.batch.sources import Portion
from serving.model.cpus import cpus
from serving.model.errors import UserError
from serving.model.pictures.memory import give_freed_memory_back
from serving.model.precision import Precision
from serving.model.predictor import Predictor, file_for
from serving.model.runtime import CUDA

CPUS_OF_A_TASK = 8  # at most: what is Python's own takes turns in a process
RETRIES = 5  # of a part whose node is lost, or runs out of memory
SECONDS_TO_ANSWER = 10


class Model(NamedTuple):
    """A predictor as it travels to the nodes: they need no registry, and all have the same version."""

    files: dict[str, bytes]  # by name, the one to open first
    version: str
    providers: Sequence[str]
    precision: Precision
    answered_in: str
    limits: Limits


class Cluster:
    """The Ray cluster at RAY_ADDRESS, or one of this machine's CPUs alone, until it is closed.

    Raises UserError where Ray is not installed, or no cluster answers.
    """

    def __init__(self) -> None:
        ray = connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise UserError(f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}: the cluster has no node with CPUs")
        self._cpus = int(min(CPUS_OF_A_TASK, *(node["CPU"] for node in nodes)))
        self._with_gpus = all(node.get("GPU") for node in nodes)
        self._at_once = sum(int(node["CPU"] // self._cpus) for node in nodes)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def score(
        self, portions: Iterable[tuple[int, Portion]], predictor: Predictor, limits: Limits
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yields the table of each portion with its number, as they are done.

        What a lost node was at work on is done again by another one.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        gpus = 1 if self._with_gpus and CUDA in predictor.providers else 0
        task: Any = ray.remote(num_cpus=self._cpus, num_gpus=gpus, max_retries=RETRIES)(_scored)
        model = ray.put(_packed(predictor, limits))
        waiting = iter(portions)
        numbers: dict[Any, int] = {}
        while True:
            # Each has one more to go on with.
            for number, portion in itertools.islice(waiting, 2 * self._at_once - len(numbers)):
                numbers[task.remote([model], portion, self._cpus)] = number
            if not numbers:
                return
            (done,), _ = ray.wait([*numbers], num_returns=1)
            try:
                table = ray.get(done)
            except RayTaskError as error:
                raise _cause(error) from error
            except RayError as error:
                raise UserError(
                    f"a part was lost {RETRIES + 1} times, and its pictures are too much for a node: "
                    f"{str(error).splitlines()[0]}\nGive the nodes more memory, or set SERVING_MAX_BATCH=1."
                ) from error
            yield numbers.pop(done), table


def connect() -> Any:
    """Ray, connected to the cluster at RAY_ADDRESS or to one of its own; raises UserError as Cluster does."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("engine=ray needs the package ray, which is not installed\nInstall it: make scale") from error
    address = os.environ.get("RAY_ADDRESS", "")
    _require_answer(address)
    handler = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if address:
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=cpus(), include_dashboard=False, **quiet)
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
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason})\n"
        "Give the address of one, such as HOST:6379 on a node of it, or unset it to use this machine alone."
    )


def _cause(error: Any) -> Exception:
    """What a task failed with; a node that lacks the program can't say it in its own words."""
    if isinstance(cause := error.cause, ModuleNotFoundError):
        return UserError(
            f"a node of the Ray cluster lacks a package ({cause})\n"
            "Give every node this checkout, and run make scale there."
        )
    return cause


def _packed(predictor: Predictor, limits: Limits) -> Model:
    paths = predictor.path, file_for(predictor.path, predictor.precision)
    files = {path.name: path.read_bytes() for path in dict.fromkeys(paths)}
    answered_in = f"{predictor.precision} in {predictor.runtime}"
    return Model(files, predictor.version, predictor.providers, predictor.precision, answered_in, limits)


def _scored(packed: list[Any], portion: Portion, cpus: int) -> pa.Table:
    """What a node does: its process keeps the predictor for the portions that follow."""
    import ray

    if packed[0] not in _scorers:
        os.environ["SERVING_THREADS"] = str(cpus)  # what it is given
        _scorers.clear()
        _scorers[packed[0]] = _unpacked(ray.get(packed[0]))
    scorer = _scorers[packed[0]]
    return scorer.table([*scorer.rows([portion()])])


_scorers: dict[Any, Scorer] = {}


def _unpacked(model: Model) -> Scorer:
    give_freed_memory_back()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in model.files.items():
            Path(folder, name).write_bytes(content)
        predictor = Predictor(Path(folder, next(iter(model.files))), model.version, model.providers, model.precision)
    scorer = Scorer(predictor, model.limits)
    if scorer.answered_in != model.answered_in:
        raise UserError(
            f"the node {os.uname().nodename} answers in {scorer.answered_in}, and this machine in {model.answered_in}\n"
            "Set SERVING_PRECISION to one that all have, such as fp32."
        )
    return scorer
