"""What happens to data and models: load, augment, train, evaluate, export, register."""

import os

import serving  # noqa: F401 - before ONNX Runtime, which it keeps from reporting

# Albumentations asks the package index for a newer release on import; training must not wait for a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
