"""The same with OpenVINO: a compiled model that answers requests of any number of threads, in bf16."""

import os
import sys
import threading

import numpy as np
import openvino
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
hints = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT"}
model = openvino.Core().compile_model(os.environ["MODEL"], "CPU", hints)
# Several threads at the first use of its Python interface may wait for one another for ever.
model({"images": np.zeros((1, 224, 224, 3), np.uint8)})
local = threading.local()


@app.post("/classify")
def classify(image: UploadFile) -> list[float]:
    pixels = np.asarray(Image.open(image.file).convert("RGB"))
    if not hasattr(local, "request"):
        local.request = model.create_infer_request()
    return local.request.infer({"images": pixels[None]})[0][0].tolist()


@app.get("/health")
def health() -> None:
    pass


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
