"""What one writes first with OpenVINO in bf16: FastAPI, a run of the model for each request."""

import os
import sys

import numpy as np
import openvino
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
model = openvino.compile_model(os.environ["MODEL"], "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})


@app.post("/classify")
def classify(image: UploadFile) -> list[float]:
    pixels = np.asarray(Image.open(image.file).convert("RGB"))
    return model.create_infer_request().infer({"images": pixels[None]})[0][0].tolist()


@app.get("/health")
def health() -> None:
    pass


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
