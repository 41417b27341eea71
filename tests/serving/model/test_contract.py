"""What a file says of itself, and what a file from before the contract had a number still means."""

import io
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from serving.model.contract import CONTRACT, INPUT, OUTPUT, Metadata
from serving.model.errors import ModelError
from serving.model.predictor import Predictor
from tests.helpers.pictures import encoded
from tests.helpers.service import edit_onnx, in_process
from tests.helpers.state import CONTRACT_0, Trained

DIGITS = [str(digit) for digit in range(10)]


def test_what_is_written_is_read() -> None:
    metadata = Metadata(
        contract=CONTRACT,
        classes=["cat", "1"],
        model_name="5",
        mlflow_run_id="0f3a5c",
        data_name="true",
        image_size=96,
        mean=[0.5, 0.25, 0.125],
        test={"accuracy": 0.875},
    )
    properties = metadata.properties()
    assert all(isinstance(value, str) for value in properties.values())
    assert properties["test_accuracy"] == "0.875"
    assert Metadata.from_properties({**properties, "what another program": "left here"}) == metadata


@pytest.mark.parametrize("missing", ["classes", "model_name", "mlflow_run_id", "data_name"])
def test_a_file_that_does_not_say_what_it_is_is_none_of_ours(missing: str, trained: Trained, tmp_path: Path) -> None:
    def remove(model) -> None:  # type: ignore[no-untyped-def]
        (entry,) = (entry for entry in model.metadata_props if entry.key == missing)
        model.metadata_props.remove(entry)

    path = edit_onnx(trained.onnx, tmp_path / "edited.onnx", remove)
    with pytest.raises(ModelError, match=f"is not one of our ONNX models .*{missing}"):
        Predictor(path)


def test_a_file_of_contract_0_says_what_it_said() -> None:
    metadata = Predictor(CONTRACT_0).metadata
    assert metadata.contract == 0
    assert metadata.classes == DIGITS
    assert (metadata.model_name, metadata.data_name, metadata.image_size) == ("resnet10t", "digits", 32)
    assert metadata.test["accuracy"] > 0.9


def test_a_file_of_contract_0_is_served_as_it_was() -> None:
    """Its pictures come at full size, whatever their proportions, and their transparency is left out."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 90, 4), np.uint8)
    session = onnxruntime.InferenceSession(CONTRACT_0, providers=["CPUExecutionProvider"])
    (expected,) = session.run([OUTPUT], {INPUT: pixels[None, ..., :3]})[0]
    with in_process(model=str(CONTRACT_0)) as client:
        files = {"image": io.BytesIO(encoded(Image.fromarray(pixels), "PNG"))}
        answer: httpx.Response = client.post("/classify", files=files)
        probabilities = answer.raise_for_status().json()["probabilities"]
        assert [probabilities[digit] for digit in DIGITS] == pytest.approx(expected.tolist(), abs=1e-6)
        assert client.get("/model").json()["metadata"]["contract"] == "0"
