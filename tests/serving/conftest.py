"""Services with settings of their own, and pictures to ask them about."""

import io
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from serving.process import running
from tests.conftest import Trained, free_port


class Served(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    log: Path


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def serve(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Runs a service of the trained ONNX file, or as the settings say, until the block ends."""

    @contextmanager
    def start(**settings: str) -> Iterator[Served]:
        port = free_port()
        url, log = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("service") / "log"
        defaults = {"SERVING_PORT": str(port), "SERVING_MODEL": str(trained.onnx)}
        with running(url, log, {**defaults, **settings}) as process:
            yield Served(url, process, log)

    return start


def edit_onnx(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(source)
    edit(model)
    onnx.save(model, target)
    return target


def png(height: int = 32, width: int = 32, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert any(sample.name == name for sample in samples) or labels, f"no metric {name}"
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())
