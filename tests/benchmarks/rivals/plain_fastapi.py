"""What one writes first: FastAPI and ONNX Runtime, a run of the model for each request."""

import os
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
session = onnxruntime.InferenceSession(os.environ["MODEL"], providers=["CPUExecutionProvider"])


@app.post("/classify")
def classify(image: UploadFile) -> list[float]:
    pixels = np.asarray(Image.open(image.file).convert("RGB"))
    return session.run(None, {"images": pixels[None]})[0][0].tolist()


@app.get("/health")
def health() -> None:
    pass


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
