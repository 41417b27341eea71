"""Predictions for many pictures: nothing lost or repeated by a kill, and the answers that the service gives."""

import itertools
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from serving.batch import prediction as batch
from serving.batch.prediction import BatchPrediction, summary
from serving.batch.sources import open_pictures
from serving.model.errors import UserError
from serving.model.pictures.decoding import decode
from serving.model.predictor import Predictor
from tests.helpers.commands import assert_user_error
from tests.helpers.pictures import encoded, photograph
from tests.helpers.state import ROOT, Trained
from tests.helpers.waiting import wait_until

MAX_PIXELS = 10_000
PART_ROWS = 256


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PART_ROWS", PART_ROWS)


@pytest.fixture(scope="module")
def predictor(trained: Trained) -> Predictor:
    return Predictor(trained.onnx)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 pictures of two sizes."""
    path = tmp_path_factory.mktemp("pictures") / "pictures.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for index in range(3000):
            pixels = random.integers(0, 256, (8 + index % 3 // 2, 8, 3), np.uint8)
            file.writestr(f"{index:04d}.png", encoded(Image.fromarray(pixels), "PNG"))
    return path


def predict(source: Path, predictor: Predictor, target: Path) -> pa.Table:
    with BatchPrediction(open_pictures(source, "source"), predictor, target, MAX_PIXELS) as prediction:
        left = prediction.rows_left
        assert sum(1 for _ in prediction.run()) == left
    assert [path.name for path in target.parent.glob(f"{target.name}*")] == [target.name], "nothing is left beside it"
    return parquet.read_table(target)


@pytest.mark.slow
def test_a_killed_run_goes_on_without_repeating_or_losing_a_row(
    archive: Path, predictor: Predictor, trained: Trained, tmp_path: Path
) -> None:
    target = tmp_path / "out.parquet"
    program = f"""
from pathlib import Path
from serving.batch import prediction
from serving.batch.sources import open_pictures
from serving.model.predictor import Predictor
prediction.PART_ROWS = {PART_ROWS}
source = open_pictures(Path({str(archive)!r}), "source")
model = Predictor(Path({str(trained.onnx)!r}))
with prediction.BatchPrediction(source, model, Path({str(target)!r}), {MAX_PIXELS}) as work:
    list(work.run())
"""
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    parts = tmp_path / "out.parquet.parts"
    wait_until(lambda: (parts / "000000.parquet").exists() or child.poll() is not None)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not target.exists()

    with BatchPrediction(open_pictures(archive, "source"), predictor, target, MAX_PIXELS) as prediction:
        assert 0 < prediction.rows_left <= 3000 - PART_ROWS
    resumed = predict(archive, predictor, target)
    assert resumed["name"].to_pylist() == [f"{index:04d}.png" for index in range(3000)]
    assert resumed.equals(predict(archive, predictor, tmp_path / "uninterrupted.parquet"), check_metadata=True)


def cut_off(source: Path, predictor: Predictor, target: Path) -> None:
    """Leaves one whole part, and some of the next."""
    with BatchPrediction(open_pictures(source, "source"), predictor, target, MAX_PIXELS) as prediction:
        assert sum(1 for _ in itertools.islice(prediction.run(), PART_ROWS + 10)) == PART_ROWS + 10


def test_other_pictures_or_another_model_begin_anew(
    archive: Path, predictor: Predictor, trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rows_left(predictor: Predictor) -> int:
        with BatchPrediction(open_pictures(source, "source"), predictor, target, MAX_PIXELS) as prediction:
            return prediction.rows_left

    source, target = tmp_path / "pictures.zip", tmp_path / "out.parquet"
    source.write_bytes(archive.read_bytes())
    cut_off(source, predictor, target)
    assert rows_left(predictor) == 3000 - PART_ROWS
    assert "starting over" not in caplog.text
    assert rows_left(Predictor(trained.onnx, "2")) == 3000
    assert "another model; starting over" in caplog.text

    cut_off(source, predictor, target)
    os.utime(source, (0, 0))
    assert rows_left(predictor) == 3000


def test_two_runs_do_not_write_the_same_target(archive: Path, predictor: Predictor, tmp_path: Path) -> None:
    one, other = (
        BatchPrediction(open_pictures(archive, "source"), predictor, tmp_path / "out.parquet", MAX_PIXELS)
        for _ in range(2)
    )
    with one, pytest.raises(UserError, match="another run"):
        other.__enter__()
    with other:
        assert other.rows_left == 3000


@pytest.fixture
def mixed(image_folder: Path) -> Path:
    """Pictures of several sizes, broken ones among them, and what is not a picture."""
    whole = (image_folder / "test" / "red" / "1.jpg").read_bytes()
    (image_folder / "cut.jpg").write_bytes(whole[:200])
    (image_folder / "empty.PNG").write_bytes(b"")
    (image_folder / "notes.txt").write_text("no picture")
    (image_folder / "._resource.jpg").write_bytes(b"what macOS leaves behind")
    Image.new("RGB", (200, 200)).save(image_folder / "large.webp")
    return image_folder


def test_answers_are_the_predictors_and_broken_pictures_have_an_error(
    mixed: Path, predictor: Predictor, tmp_path: Path
) -> None:
    Path(os.fsdecode(os.fsencode(mixed) + b"/caf\xe9.png")).write_bytes((mixed / "test/red/0.png").read_bytes())
    table = predict(mixed, predictor, tmp_path / "new" / "out.parquet")
    names = table["name"].to_pylist()
    folders = [
        f"{split}/{label}/{index}" for split in ("test", "train") for label in ("green", "red") for index in range(6)
    ]
    whole = [next(mixed.glob(f"{name}.*")).relative_to(mixed).as_posix() for name in folders]
    assert names == ["caf\\xe9.png", "cut.jpg", "empty.PNG", "large.webp", "notes.txt", *whole]

    probabilities = [f"probability_{label}" for label in predictor.classes]
    for row in table.to_pylist():
        assert row["model_version"] == "file"
        if row["name"] in whole:
            (expected,) = predictor.predict(decode((mixed / row["name"]).read_bytes())[None], all_cores=True)
            np.testing.assert_allclose([row[column] for column in probabilities], expected, atol=1e-5)
            assert row["label"] == predictor.classes[expected.argmax()]
            assert row["confidence"] == max(row[column] for column in probabilities)
            assert row["error"] is None
    by_name = {row["name"]: row for row in table.to_pylist()}
    for name, words in [
        ("cut.jpg", "broken"),
        ("empty.PNG", "empty"),
        ("notes.txt", "not a picture"),
        ("large.webp", "200x200 pixels"),
    ]:
        assert words in by_name[name]["error"]
        assert {by_name[name][column] for column in ("label", "confidence", *probabilities)} == {None}

    rows = {row["class"]: row for row in summary(tmp_path / "new" / "out.parquet")}
    assert list(rows) == [*predictor.classes, "(all)", "(no answer)"]
    assert (rows["(all)"]["pictures"], rows["(no answer)"]["pictures"]) == (len(names) - 4, 4)
    for label in predictor.classes:
        assert rows[label]["pictures"] == table["label"].to_pylist().count(label)
        bands = [rows[label][band] for band in ("below 50%", "50% to 90%", "from 90%")]
        assert sum(bands) == rows[label]["pictures"]


def test_folder_archive_and_parquet_give_the_same_rows(mixed: Path, predictor: Predictor, tmp_path: Path) -> None:
    expected = predict(mixed, predictor, tmp_path / "folder.parquet")
    names = expected["name"].to_pylist()

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for path in mixed.rglob("*"):
            file.write(path, path.relative_to(mixed))
    assert predict(tmp_path / "all.zip", predictor, tmp_path / "zip.parquet").equals(expected)

    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as file:
        file.add(mixed, ".")
    from_tar = predict(tmp_path / "all.tar.gz", predictor, tmp_path / "tar.parquet")
    assert from_tar.sort_by("name").equals(expected.sort_by("name"))

    content = [(mixed / name).read_bytes() for name in names]
    structs = [{"bytes": data, "path": name} for data, name in zip(content, names, strict=True)]
    parquet.write_table(pa.table({"label": [0] * len(names), "picture": structs}), tmp_path / "hf", row_group_size=10)
    assert predict(tmp_path / "hf", predictor, tmp_path / "hf.parquet").equals(expected)

    columns = {"thumbnail": [b""] * (len(names) + 1), "image": [*content, None]}
    parquet.write_table(pa.table(columns), tmp_path / "plain.parquet")
    plain = predict(tmp_path / "plain.parquet", predictor, tmp_path / "out.parquet")
    assert plain["name"].to_pylist() == [str(row) for row in range(len(names) + 1)]
    assert plain["error"][-1].as_py()
    assert plain.drop_columns("name").slice(0, len(names)).equals(expected.drop_columns("name"))


# In a process of its own: what other tests have freed would be memory, too.
WITH_LITTLE_MEMORY = """
import sys

import psutil

from serving.batch.prediction import BatchPrediction
from serving.batch.sources import open_pictures
from serving.model.errors import exit_in_words
from serving.model.predictor import Predictor

predictor, process = Predictor(sys.argv[1]), psutil.Process()
process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 100_000_000, psutil.RLIM_INFINITY))
with exit_in_words():
    with BatchPrediction(open_pictures(sys.argv[2], "source"), predictor, sys.argv[3], 50_000_000) as prediction:
        for _ in prediction.run():
            pass
"""


def test_out_of_memory_is_no_broken_picture(
    image_folder: Path, trained: Trained, predictor: Predictor, tmp_path: Path
) -> None:
    """The run stops with words, and when there is memory again it has an answer to every picture."""
    (image_folder / "large.png").write_bytes(photograph(7000, 7000))
    (image_folder / "large.webp").write_bytes(photograph(7000, 7000, "WEBP", method=0))
    arguments = trained.onnx, image_folder, tmp_path / "out.parquet"
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, *map(str, arguments)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # each thread's own would take addresses beforehand
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert_user_error(result, "large.", "not enough memory", "SERVING_MAX_PIXELS")
    source = open_pictures(image_folder, "source")
    with BatchPrediction(source, predictor, tmp_path / "out.parquet", 50_000_000) as prediction:
        for _ in prediction.run():
            pass
    assert set(parquet.read_table(tmp_path / "out.parquet")["error"].to_pylist()) == {None}
