"""A container engine of the tests' own, and our images built in it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.containers import STORE, Images
from tests.helpers.state import ROOT

BASE = "docker.io/library/python:3.11-slim-bookworm"
TOOLS = ("podman", "runc", "debootstrap")
# What building both images with CUDA takes for a while: 22, and some room.
GIGABYTES = 30
CONTAINERS_CONF = f"""
[containers]
default_ulimits = []  # raising them is not allowed inside a container
[engine]
runtime = "runc"  # crun fails where the control groups are of both versions
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{STORE}/tmp"
"""
STORAGE_CONF = f"""
[storage]
driver = "overlay"
graphroot = "{STORE}/storage"
runroot = "{STORE}/run"
"""


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """Podman with a store of its own: the stand-in for the base image must not be taken for the real one elsewhere."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"no container engine: {', '.join(missing)} not installed; .ci/run installs them")
    if os.geteuid() != 0:
        pytest.skip("no container engine: debootstrap and the overlay file system need root")
    if shutil.disk_usage(ROOT).free < GIGABYTES * 1e9:
        pytest.skip(f"no container engine: less than {GIGABYTES} GB are free for the images")
    STORE.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, content in (("CONTAINERS_CONF", CONTAINERS_CONF), ("CONTAINERS_STORAGE_CONF", STORAGE_CONF)):
            path = STORE / f"{name.lower()}.toml"
            path.write_text(content)
            patch.setenv(name, str(path))
        patch.setenv(
            "DISABLE_HC_SYSTEMD", "true"
        )  # health checks are asked for, not timed: not every system has systemd
        info = subprocess.run(["podman", "info"], capture_output=True, text=True)
        if info.returncode != 0:
            pytest.skip(f"no container engine: podman does not run here ({info.stderr.strip().splitlines()[-1]})")
        yield


@pytest.fixture(scope="session")
def images(engine: None) -> Images:
    """Both images as `make images` builds them."""
    exists = subprocess.run(["podman", "image", "exists", BASE]).returncode == 0
    if not exists and subprocess.run(["podman", "pull", "--quiet", BASE]).returncode != 0:
        subprocess.run([Path(__file__).with_name("stand_in_base.sh"), BASE], check=True)
    device = "cpu" if pytorch_index_answers() else "gpu"
    command = ["make", "images", "ENGINE=podman", f"DEVICE={device}"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert built.returncode == 0, built.stdout[-5000:]
    return Images("localhost/cifar10-serve", "localhost/cifar10-train", device)


def pytorch_index_answers() -> bool:
    """Whether PyTorch's builds without CUDA can be had; those with CUDA come from the package index itself."""
    try:
        return httpx.head("https://download.pytorch.org/whl/cpu/torch/", timeout=10).is_success
    except httpx.TransportError:
        return False
