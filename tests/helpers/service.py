"""The service in this process or in one of its own, and what it tells."""

import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import onnx
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serving.online.app import create_application
from serving.running import running
from serving.settings import load_settings
from tests.helpers.waiting import free_port, wait_until

T = TypeVar("T")


class Served(NamedTuple):
    """A service in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


class Memory:
    """What a service has occupied at most since this was made, beyond what it did then, in bytes."""

    def __init__(self, served: Served) -> None:
        self._status = Path(f"/proc/{served.process.pid}")
        (self._status / "clear_refs").write_text("5")  # the kernel's own highest mark begins anew
        self._before = self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM") - self._before

    def now(self) -> int:
        return self._read("VmRSS") - self._before

    def _read(self, name: str) -> int:
        lines = (self._status / "status").read_text().splitlines()
        return 1000 * next(int(line.split()[1]) for line in lines if line.startswith(name))


Serve = Callable[..., AbstractContextManager[Served]]
InProcess = Callable[..., AbstractContextManager[httpx.Client]]


@contextmanager
def served(log: Path, url: str = "", **settings: str) -> Iterator[Served]:
    """`url`: where its settings let it listen, if they do."""
    port = free_port()
    url = url or f"http://127.0.0.1:{port}"
    with running(url, log, {"SERVING_PORT": str(port), **settings}) as process:
        yield Served(url, process, log)


@contextmanager
def in_process(**settings: Any) -> Iterator[httpx.Client]:
    """A client of the application, once it has its model."""
    values = load_settings(**settings)
    app = create_application(values)
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        token = {"authorization": f"Bearer {values.tokens[0].get_secret_value()}"} if values.tokens else {}
        wait_until(lambda: client.get("/model", headers=token).is_success)
        yield client


@contextmanager
def under_load(ask: Callable[[int], T]) -> Iterator[list[T]]:
    """Four clients ask until the block ends, each told the number of its question; what they get, as it comes."""
    answers: list[T] = []
    stop = threading.Event()

    def keep_asking(client: int) -> None:
        for number in itertools.count(client):
            if stop.is_set():
                return
            answers.append(ask(number))

    threads = [threading.Thread(target=keep_asking, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def metric(service: str | httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    answer = httpx.get(f"{service}/metrics") if isinstance(service, str) else service.get("/metrics")
    families = text_string_to_metric_families(answer.raise_for_status().text)
    samples = [sample for family in families for sample in family.samples]
    assert any(sample.name == name for sample in samples) or labels, f"no metric {name}"
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def edit_onnx(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(source)
    edit(model)
    onnx.save(model, target)
    return target
