"""Requests a second and latency of /classify beside other ways to serve the same model, in one run.

python -m tests.benchmarks.serving_throughput [SECONDS]

Raw ONNX Runtime, with the best of several batch sizes and numbers of threads, is the limit. Each rival runs in an
environment of its own, which is installed under STATE_DIR/benchmarks the first time.
"""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import onnx
import onnxruntime
from PIL import Image
from rich.console import Console
from rich.table import Table

from tests.conftest import ROOT, free_port, wait_until
from training.config import compose_config
from training.export import SIGNATURE, export_onnx
from training.models import build_model

RIVALS = Path(__file__).with_name("rivals")
CONCURRENCY = 32
RUNTIME = [f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"]


@dataclass
class Server:
    """How to start a server, and how to ask it about the picture.

    Attributes:
        requirements: of its environment; none: this one.
        command: behind `python`; {port} is filled in.
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
    def running(self) -> Iterator[str]:
        port = str(free_port())
        python = self.python()
        command = [python, *(word.format(port=port) for word in self.command)]
        environment = {**os.environ, **self.environment, "SERVING_PORT": port}
        environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until(lambda: httpx.get(url + self.health).is_success)
                yield url + self.path
            finally:
                process.terminate()
                process.wait()


def write_model(directory: Path) -> Path:
    """resnet18 at 224x224: its weights do not count for speed, so they are random."""
    config = compose_config(["model=resnet18", "model.weights=none", "model.image_size=224"])
    path = directory / "model.onnx"
    export_onnx(build_model(config.model, 10), path)
    model = onnx.load(path)
    said = {"classes": json.dumps([str(index) for index in range(10)])}
    onnx.helper.set_model_props(model, {**said, "model_name": "resnet18", "mlflow_run_id": "none", "data_name": "none"})
    onnx.save(model, path)
    mlflow.onnx.save_model(model, directory / "mlflow", signature=SIGNATURE, save_as_external_data=False)
    return path


def raw(path: Path, image: np.ndarray, seconds: float) -> tuple[float, float]:
    """The most pictures a second, and the least median latency of one in milliseconds."""
    rates, latencies = [], []
    for threads in range(1, (os.cpu_count() or 1) + 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for batch_size in (1, 8, 16, 32):
            images = np.repeat(image[None], batch_size, axis=0)
            session.run(None, {"images": images})
            times = []
            while sum(times) < seconds / 4 or len(times) < 3:
                start = time.perf_counter()
                session.run(None, {"images": images})
                times.append(time.perf_counter() - start)
            rates.append(batch_size * len(times) / sum(times))
            if batch_size == 1:
                latencies.append(1000 * float(np.median(times)))
    return max(rates), min(latencies)


async def load(url: str, request: dict[str, Any], concurrency: int, seconds: float) -> tuple[float, float]:
    """Answers a second, and the median latency in milliseconds, of so many clients that ask one after the other."""
    latencies: list[float] = []

    async def client(session: httpx.AsyncClient, until: float) -> None:
        while (start := time.perf_counter()) < until:
            answer = await session.send(session.build_request("POST", url, **request))
            answer.raise_for_status()
            latencies.append(time.perf_counter() - start)

    async with httpx.AsyncClient(timeout=60) as session:
        await asyncio.gather(*(client(session, time.perf_counter() + 2) for _ in range(concurrency)))  # warm
        latencies.clear()
        start = time.perf_counter()
        await asyncio.gather(*(client(session, start + seconds) for _ in range(concurrency)))
        elapsed = time.perf_counter() - start
    return len(latencies) / elapsed, 1000 * float(np.median(latencies))


def main(seconds: float) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (32, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    png = buffer.getvalue()
    upload = {"files": {"image": ("picture.png", png, "image/png")}}
    with tempfile.TemporaryDirectory() as directory:
        path = write_model(Path(directory))
        servers = [
            Server("this service", ["-m", "serving"], "/classify", "/readyz", upload),
            Server(
                "FastAPI and ONNX Runtime",
                [str(RIVALS / "plain_fastapi.py"), "{port}"],
                *("/classify", "/health", upload),
                [*RUNTIME, "fastapi==0.150.0", "uvicorn[standard]", "python-multipart", "pillow"],
            ),
            Server(
                "LitServe",
                [str(RIVALS / "lit_server.py"), "{port}"],
                *("/predict", "/health", {"json": {"image": base64.b64encode(png).decode()}}),
                [*RUNTIME, "litserve==0.2.19", "pillow"],
            ),
            Server(
                "mlflow models serve",
                ["-m", "mlflow", "models", "serve", "-m", f"{directory}/mlflow", "--env-manager=local", "-p", "{port}"],
                *("/invocations", "/ping", {"json": {"inputs": {"images": image[None].tolist()}}}),
                [*RUNTIME, f"mlflow=={mlflow.__version__}", f"onnx=={onnx.__version__}", "sqlalchemy<2.1"],
            ),
        ]
        limit, latency = raw(path, image, seconds)
        title = f"resnet18 at 224x224, {os.cpu_count()} cores, {seconds:g} seconds each"
        table = Table("", f"requests/s at {CONCURRENCY}", "of raw", "ms at 1", "over raw", title=title)
        table.add_row("raw ONNX Runtime", f"{limit:.1f}", "100 %", f"{latency:.1f}", "")
        for server in servers:
            server.environment |= {"MODEL": str(path), "SERVING_MODEL": str(path)}
            with server.running() as url:
                rate, _ = asyncio.run(load(url, server.request, CONCURRENCY, seconds))
                _, single = asyncio.run(load(url, server.request, 1, seconds))
            cells = f"{rate:.1f}", f"{rate / limit:.0%}", f"{single:.1f}", f"{single - latency:+.1f}"
            table.add_row(server.name, *cells)
        Console().print(table)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
