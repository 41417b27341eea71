"""What happens to data and models: load, augment, train, evaluate, export, register."""

import os

import serving  # noqa: F401 - before ONNX Runtime, which it keeps from reporting

# A thread of OpenMP that waits for the others spins for 3 ms, and so keeps a core from them where other programs run as
# well. This is 10 microseconds: docs/figures.md. OpenMP reads it when PyTorch loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Albumentations asks the package index for a newer release on import; training must not wait for a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
