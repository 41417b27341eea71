"""LitServe with its batching."""

import base64
import io
import os
import sys

import litserve
import numpy as np
import onnxruntime
from PIL import Image


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB"))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": images})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=32, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(
        port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
