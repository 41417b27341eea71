"""Photographs and files of every format and mode: one answer each, whoever decodes it and whichever model looks."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from serving.batch.prediction import BatchPrediction
from serving.batch.sources import open_pictures
from serving.model.pictures.decoding import MAX_PIXELS
from serving.model.predictor import Predictor
from serving.model.registry import champion_uri, onnx_file, version_uri
from tests.helpers.pictures import encoded
from tests.helpers.service import in_process
from tests.helpers.state import state_in
from training import tracking
from training.config import compose
from training.data.split import load_data
from training.release import promotion, registry
from training.release.candidate import export_run
from training.train import train

pytestmark = pytest.mark.slow

NAME = "photographs"
SMALL, LARGE = 96, 224  # pixels
# Some are long, so that no model sees all of them; some are large, so that none decodes them whole.
SIZES = [(750, 500), (500, 750), (2400, 160), (45, 30), (520, 520)]
FORMATS = ["JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "PPM"]
MODES = {
    "PNG": ["RGBA", "LA", "P", "L", "1", "I;16"],
    "JPEG": ["CMYK", "L"],
    "TIFF": ["CMYK", "RGBA"],
    "WEBP": ["RGBA"],
}


def photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """Clouds, with detail that is lost at small sizes."""
    random = np.random.default_rng(seed)
    coarse, fine = (
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for side in (6, 200)
    )
    return Image.blend(coarse, fine, 0.5)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("RGBA", "LA"):
        image.putalpha(image.convert("L").point(lambda value: 255 * (value > 110)))
    elif mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of two classes, warm and cold, with every format, mode and size in its test set."""
    path = tmp_path_factory.mktemp("photographs") / "photographs.zip"
    seed = 0
    with zipfile.ZipFile(path, "w") as file:

        def add(split: str, label: str, form: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> None:
            nonlocal seed
            seed += 1
            tint = Image.new("RGB", size, (220, 90, 40) if label == "warm" else (40, 90, 220))
            image = in_mode(Image.blend(photograph(size, seed), tint, 0.35), mode)
            file.writestr(f"{split}/{label}/{seed:03d}-{mode}.{form.lower()}", encoded(image, form, **options))

        for label in ("warm", "cold"):
            for index in range(20):
                add("train", label, "JPEG", SIZES[index % 2])
            for form in FORMATS:
                add("test", label, form, SIZES[seed % len(SIZES)])
            for form, modes in MODES.items():
                for mode in modes:
                    add("test", label, form, SIZES[seed % len(SIZES)], mode)
            for size in SIZES:
                add("test", label, "JPEG", size)
            for orientation in (3, 6, 7):
                exif = Image.Exif()
                exif[0x0112] = orientation
                add("test", label, "JPEG", (750, 500), exif=exif)
    return path


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with state_in(tmp_path_factory.mktemp("state")) as directory:
        yield directory


def trained_and_registered(photographs: Path, image_size: int, seed: int = 1) -> tuple[str, str]:
    """A run of that size, and its version."""
    settings = compose([
        "data=folder", f"data.root={photographs}", "experiment=quick", "trainer.epochs=2",
        "trainer.batch_size=8",
        f"model.image_size={image_size}", f"seed={seed}",
    ])  # fmt: skip
    run_id = train(settings)
    return run_id, registry.register(run_id, export_run(run_id), NAME)


def online(photographs: Path, names: list[str], model: str) -> np.ndarray:
    """What the service answers to each of those files, (N, classes)."""
    with in_process(model=model) as client, zipfile.ZipFile(photographs) as file:
        answers = [
            client.post("/classify", files={"image": file.read(name)}).raise_for_status().json() for name in names
        ]
    return np.array([[answer["probabilities"][label] for label in ("cold", "warm")] for answer in answers])


@pytest.fixture(scope="module")
def small(photographs: Path) -> tuple[str, str]:
    """A run at 96 pixels and its version, which is the champion."""
    run_id, version = trained_and_registered(photographs, SMALL)
    promotion.promote_if_better(version, NAME)
    return run_id, version


def test_training_online_and_offline_answer_alike(
    photographs: Path, small: tuple[str, str], own_state: Path, tmp_path: Path
) -> None:
    run_id, version = small
    settings = tracking.run_settings(run_id)
    test = load_data(settings.data, settings.seed, settings.model.decoding).test
    names = list(test.names)
    in_training = np.load(tracking.artifact(run_id, tracking.PROBABILITIES_FILE))
    assert len(names) == len(in_training) == 2 * (len(FORMATS) + sum(map(len, MODES.values())) + len(SIZES) + 3)
    assert max(np.sqrt(height * width) for height, width in test.sizes) <= 4 * SMALL, "photographs are decoded small"

    served = online(photographs, names, champion_uri(NAME))
    np.testing.assert_allclose(served, in_training, atol=1e-3)

    predictor = Predictor(onnx_file(version_uri(NAME, version), own_state))
    target = tmp_path / "out.parquet"
    with BatchPrediction(open_pictures(photographs, "source"), predictor, target, MAX_PIXELS) as prediction:
        list(prediction.run())
    rows = {row["name"]: row for row in parquet.read_table(target).to_pylist()}
    offline = np.array([[rows[name][f"probability_{label}"] for label in ("cold", "warm")] for name in names])
    np.testing.assert_allclose(offline, served, atol=1e-6)


def test_a_champion_of_another_size_is_compared_by_the_answers_that_it_gives_online(
    photographs: Path, small: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, version = trained_and_registered(photographs, LARGE)
    compared: dict[str, np.ndarray] = {}

    def better(candidate: np.ndarray, reigning: np.ndarray, *others: object) -> promotion.Decision:
        compared.update(candidate=candidate, reigning=reigning)
        return real(candidate, reigning, *others)  # type: ignore[arg-type]

    real = promotion.better
    monkeypatch.setattr(promotion, "better", better)
    promotion.promote_if_better(version, NAME)

    settings = tracking.run_settings(run_id)
    test = load_data(settings.data, settings.seed, settings.model.decoding).test
    names = list(test.names)
    np.testing.assert_allclose(compared["reigning"], online(photographs, names, version_uri(NAME, small[1])), atol=1e-5)
    np.testing.assert_allclose(compared["candidate"], online(photographs, names, version_uri(NAME, version)), atol=1e-5)
