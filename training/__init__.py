"""What happens to data and models: load, augment, train, evaluate, export, register."""

import os

# Albumentations asks the package index for a newer release on import; training must not wait for a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
