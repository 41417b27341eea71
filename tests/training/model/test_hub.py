"""Weights from timm's hub: the real client asks a server that has the hub's addresses."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.state import ROOT
from training.config import compose

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from safetensors.torch import save_file
from training.config import compose
from training.model.classifier import build_model
model = build_model(compose([f"model={sys.argv[1]}"]).model, 10)
save_file({name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}, sys.argv[2])
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a hub whose every repository holds the file `model.safetensors` of a folder, and that folder."""
    folder = tmp_path / "hub"
    folder.mkdir()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            file = folder / self.path.rpartition("/")[2]
            if "/resolve/" not in self.path or not file.exists():
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vit_b16"])
def test_the_reference_models_have_the_hub_s_weights(name: str, hub: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = hub
    settings = compose([f"model={name}"]).model
    torch.manual_seed(1)
    source = timm.create_model(settings.backbone, **settings.backbone_options).state_dict()
    save_file(source, folder / "model.safetensors")

    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", PROGRAM, name, str(tmp_path / "loaded.safetensors")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = load_file(tmp_path / "loaded.safetensors")
    assert loaded
    for key, tensor in loaded.items():
        assert torch.equal(tensor, source[key]), key
