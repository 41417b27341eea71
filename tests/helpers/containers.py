"""Podman with a store of the tests' own, and our images in it."""

import subprocess
from typing import NamedTuple

from tests.helpers.state import ROOT

# Kept between runs, as the layers of the training image take minutes; `make clean` removes it.
STORE = ROOT / ".podman_cache"
# As strict as Docker is: podman by itself keeps /tmp and others writable.
READ_ONLY = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")


class Images(NamedTuple):
    """`device` is what they compute on: cpu or gpu."""

    serve: str
    train: str
    device: str


def podman(*arguments: str) -> str:
    result = subprocess.run(["podman", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, f"podman {' '.join(arguments)}: {result.stdout}{result.stderr}"
    return result.stdout.strip()
