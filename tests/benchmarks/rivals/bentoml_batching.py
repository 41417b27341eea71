"""BentoML with its own adaptive batching."""

import os

import bentoml
import numpy as np
import onnxruntime
from PIL.Image import Image


@bentoml.service(logging={"access": {"enabled": False}})  # no other rival writes one
class Classifier:
    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], providers=["CPUExecutionProvider"])

    # What it expects to take longer gets 503: with the documentation's 1000 ms, some of 32 clients of a slow machine.
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000)
    def classify(self, image: list[Image]) -> np.ndarray:
        images = np.stack([np.asarray(picture.convert("RGB")) for picture in image])
        return self.session.run(None, {"images": images})[0]
