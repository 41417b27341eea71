"""What answers: pictures in, classes out. Needs the ONNX file and nothing that trained it."""

import os

# At its import ONNX Runtime would report its use to Microsoft, and keep an id in the home directory.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
