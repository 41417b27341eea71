"""Whether everybody who answers says the same."""

from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from training import tracking
from training.data.split import load_data
from training.quality.evaluation import torch_classify
from training.release.candidate import load_model
from training.release.export import onnx_classify


def assert_same_answers(url: str, run_id: str, onnx: Path, folder: Path) -> int:
    """Ten test pictures of each class: the service, the ONNX file and the PyTorch model say the same."""
    settings = tracking.run_settings(run_id)
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    in_pytorch, in_onnx = torch_classify(load_model(run_id)), onnx_classify(onnx)
    labels = data.test.labels
    chosen = [index for label in np.unique(labels) for index in np.flatnonzero(labels == label)[:10]]
    for index in chosen:
        path = folder / f"{index}.png"
        Image.fromarray(data.test[index]).save(path)
        answer = httpx.post(f"{url}/classify", files={"image": path.read_bytes()}).raise_for_status().json()
        served = np.array([answer["probabilities"][name] for name in data.classes])
        np.testing.assert_allclose(served, in_onnx(data.test[index][None])[0], atol=1e-6)
        np.testing.assert_allclose(served, in_pytorch(data.test[index][None])[0], atol=1e-3)
        assert answer["label"] == data.classes[served.argmax()]
        assert answer["confidence"] == served.max()
        assert answer["model"]["run_id"] == run_id
    return len(chosen)
