"""The service runs in an environment without what trained its model."""

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.running import running
from tests.helpers.state import ROOT, Trained
from tests.helpers.waiting import free_port

pytestmark = pytest.mark.slow


def test_the_serving_lock_file_is_enough(trained: Trained, tmp_path: Path) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    requirements = ROOT / "requirements" / "serve.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
    for module in ("torch", "timm", "albumentations", "prefect", "pyarrow"):
        assert subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode != 0

    files = [path for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 1.1e9

    image = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(image)
    # The registry's champion, and the file by itself: both need nothing else.
    answers = []
    for model in ("models:/image-classifier@champion", str(trained.onnx)):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = {"SERVING_PORT": str(port), "SERVING_MODEL": model}
        with running(url, tmp_path / "service.log", settings, str(python)):
            answers.append(httpx.post(f"{url}/classify", files={"image": image.read_bytes()}).raise_for_status().json())
    from_registry, from_file = answers
    assert from_registry["probabilities"] == from_file["probabilities"]
    assert from_registry["model"]["version"] == trained.version
    assert from_file["model"]["version"] == "file"
    assert from_file["model"]["run_id"] == trained.run_id
