"""Requests a second and latency of /classify beside other ways to serve the same model, in one run.

python -m tests.benchmarks.serving_throughput [SECONDS]

Where the CPU computes in bf16, this service takes part in bf16 too, and so does one with OpenVINO.

Raw ONNX Runtime, with the best of several batch sizes and numbers of threads, is the limit: it and the servers take
turns, and all but one are stopped meanwhile, for LitServe takes a sixth of a core while nobody asks it. The load comes
from the same machine, and takes some of its time. Each rival runs in an environment of its own, which is installed
under STATE_DIR/benchmarks the first time.
"""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import bentoml
import httpx
import mlflow
import numpy as np
import onnx
import onnxruntime
import psutil
from rich.console import Console
from rich.table import Table

from serving.model.contract import Measured, Metadata
from serving.model.pictures.decoding import decode
from serving.model.runtime import runtimes
from tests.helpers.pictures import png
from tests.helpers.state import ROOT
from tests.helpers.waiting import free_port, wait_until
from training.config import compose
from training.model.classifier import build_model
from training.release.candidate import SIGNATURE
from training.release.export import export_onnx

RIVALS = Path(__file__).with_name("rivals")
CONCURRENCY = 32
TURNS = 5
BF16 = {"SERVING_PRECISION": "bf16"}
# So many clients, so many seconds -> answers a second, and the median latency in milliseconds.
Load = Callable[[int, float], tuple[float, float]]
WEB = ["fastapi==0.150.0", "uvicorn[standard]", "python-multipart", "pillow"]
RUNTIME = [f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"]


@dataclass
class Server:
    """How to start a server, and how to ask it about the picture.

    Attributes:
        requirements: of its environment; none: this one.
        command: after `python`; {port} is filled in.
        health: the path that answers once it is ready.
    """

    name: str
    command: list[str]
    path: str
    health: str
    request: dict[str, Any]
    requirements: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def python(self) -> str:
        if not self.requirements:
            return sys.executable
        directory = Path(os.environ.get("STATE_DIR", ROOT / "state")) / "benchmarks" / self.name.replace(" ", "_")
        if not (directory / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", directory], check=True)
            subprocess.run([directory / "bin" / "pip", "install", "--quiet", *self.requirements], check=True)
            (directory / "installed").touch()
        return str(directory / "bin" / "python")

    @contextmanager
    def running(self) -> Iterator[Load]:
        """What puts load on the server, which is stopped between the turns."""
        port = str(free_port())
        python = self.python()
        command = [python, *(word.format(port=port) for word in self.command)]
        environment = {**os.environ, **self.environment, "SERVING_PORT": port}
        environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until(lambda: httpx.get(url + self.health).is_success)
                request = httpx.Request("POST", url + self.path, **self.request)
                content = request.read(), request.headers["content-type"]

                def turn(concurrency: int, seconds: float) -> tuple[float, float]:
                    tell_all(process, signal.SIGCONT)
                    try:
                        return asyncio.run(load(str(request.url), *content, concurrency, seconds))
                    finally:
                        tell_all(process, signal.SIGSTOP)

                tell_all(process, signal.SIGSTOP)
                yield turn
            finally:
                tell_all(process, signal.SIGCONT)
                process.terminate()
                process.wait()
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # LitServe's workers outlive it


def tell_all(process: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to a server and its workers, which may have sessions of their own."""
    server = psutil.Process(process.pid)
    for each in (server, *server.children(recursive=True)):
        each.send_signal(number)


def write_model(directory: Path) -> Path:
    """resnet18 at 224x224: its weights do not count for speed, so they are random."""
    settings = compose(["model=resnet18", "model.weights=none", "model.image_size=224"])
    path = directory / "model.onnx"
    export_onnx(build_model(settings.model, 10), path)
    model = onnx.load(path)
    classes = [str(index) for index in range(10)]
    # What it does to answers does not count for speed either.
    half = {"precision": "bf16", "runtime": "openvino", "accuracy": 0, "changed": 0, "largest_change": 0, "speed": 2}
    said = Measured.model_validate({**half, "allowed": True})
    about = {"model_name": "resnet18", "mlflow_run_id": "none", "data_name": "none"}
    metadata = Metadata(classes=classes, measured=[said], **about)
    onnx.helper.set_model_props(model, metadata.properties())
    onnx.save(model, path)
    mlflow.onnx.save_model(model, directory / "mlflow", signature=SIGNATURE, save_as_external_data=False)
    return path


class Raw:
    """ONNX Runtime by itself: as fast as it gets with batches, and one picture after the other."""

    def __init__(self, path: Path, image: np.ndarray) -> None:
        self.image = image
        sessions = []
        for threads in range(1, (os.cpu_count() or 1) + 1):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        self.single = min(sessions, key=lambda session: self._times(session, 1, 2).mean())
        choices = [(session, batch_size) for session in sessions for batch_size in (1, 8, 16, 32)]
        self.best = max(choices, key=lambda choice: choice[1] / self._times(*choice, 2).mean())

    def _times(self, session: onnxruntime.InferenceSession, batch_size: int, seconds: float) -> np.ndarray:
        images = np.repeat(self.image[None], batch_size, axis=0)
        session.run(None, {"images": images})
        times: list[float] = []
        while sum(times) < seconds:
            start = time.perf_counter()
            session.run(None, {"images": images})
            times.append(time.perf_counter() - start)
        return np.array(times)

    def load(self, concurrency: int, seconds: float) -> tuple[float, float]:
        """Pictures a second, and the median milliseconds of a run."""
        session, batch_size = (self.single, 1) if concurrency == 1 else self.best
        times = self._times(session, batch_size, seconds)
        return batch_size / times.mean(), 1000 * float(np.median(times))


async def load(url: str, body: bytes, content_type: str, concurrency: int, seconds: float) -> tuple[float, float]:
    """Answers a second, and the median latency in milliseconds, of so many clients that ask one after the other."""
    latencies: list[float] = []

    async def client(session: aiohttp.ClientSession, until: float) -> None:
        while (start := time.perf_counter()) < until:
            async with session.post(url, data=body, headers={"content-type": content_type}) as answer:
                answer.raise_for_status()
                await answer.read()
            latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, time.perf_counter() + 1) for _ in range(concurrency)))  # warm
        latencies.clear()
        start = time.perf_counter()
        await asyncio.gather(*(client(session, start + seconds) for _ in range(concurrency)))
        elapsed = time.perf_counter() - start
    return len(latencies) / elapsed, 1000 * float(np.median(latencies))


def main(seconds: float) -> None:
    picture = png()
    image = decode(picture)
    upload = {"files": {"image": ("picture.png", picture, "image/png")}}
    with tempfile.TemporaryDirectory() as directory:
        path = write_model(Path(directory))
        servers = [
            Server("this service", ["-m", "serving"], "/classify", "/readyz", upload),
            *(
                Server("this service, bf16", ["-m", "serving"], "/classify", "/readyz", upload, [], dict(BF16))
                for _ in runtimes("bf16")
            ),
            Server(
                "FastAPI and ONNX Runtime",
                [str(RIVALS / "plain_fastapi.py"), "{port}"],
                *("/classify", "/health", upload),
                [*WEB, *RUNTIME],
            ),
            *(
                Server(
                    "FastAPI and OpenVINO, bf16",
                    [str(RIVALS / "plain_openvino.py"), "{port}"],
                    *("/classify", "/health", upload),
                    [*WEB, f"openvino=={version('openvino')}", f"numpy=={np.__version__}"],
                )
                for _ in runtimes("bf16")
            ),
            Server(
                "LitServe",
                [str(RIVALS / "lit_server.py"), "{port}"],
                *("/predict", "/health", {"json": {"image": base64.b64encode(picture).decode()}}),
                [*RUNTIME, "litserve==0.2.19", "pillow"],
            ),
            Server(
                "BentoML batching",
                ["-m", "bentoml", "serve", "bentoml_batching:Classifier", f"--working-dir={RIVALS}", "--port={port}"],
                *("/classify", "/readyz", upload),
                [*RUNTIME, f"bentoml=={bentoml.__version__}", "uvicorn[standard]", "pillow"],
            ),
            Server(
                "mlflow models serve",
                ["-m", "mlflow", "models", "serve", "-m", f"{directory}/mlflow", "--env-manager=local", "-p", "{port}"],
                *("/invocations", "/ping", {"json": {"inputs": {"images": image[None].tolist()}}}),
                [*RUNTIME, f"mlflow=={mlflow.__version__}", f"onnx=={onnx.__version__}", "sqlalchemy<2.1"],
            ),
        ]
        raw = Raw(path, image)
        with ExitStack() as running:
            ways: dict[str, Load] = {"raw ONNX Runtime": raw.load}
            for server in servers:
                server.environment |= {"MODEL": str(path), "SERVING_MODEL": str(path)}
                ways[server.name] = running.enter_context(server.running())
            # In turns, as a machine is not as fast in one minute as in the next.
            turns = [
                [(way(CONCURRENCY, seconds / TURNS)[0], way(1, seconds / TURNS)[1]) for way in ways.values()]
                for _ in range(TURNS)
            ]
        (limit, least), *_ = medians = np.median(turns, axis=0)
        title = f"resnet18 at 224x224, {os.cpu_count()} cores, {seconds:g} seconds each, in {TURNS} turns"
        table = Table("", f"requests/s at {CONCURRENCY}", "of raw", "ms at 1", "over raw", title=title)
        for name, (rate, latency) in zip(ways, medians, strict=True):
            table.add_row(name, f"{rate:.1f}", f"{rate / limit:.0%}", f"{latency:.1f}", f"{latency - least:+.1f}")
        Console().print(table)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20)
