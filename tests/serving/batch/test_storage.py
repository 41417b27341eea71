"""Sources and targets at S3's addresses, with moto's server."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch import prediction as batch
from serving.batch import storage as addresses
from serving.batch.prediction import BatchPrediction, summary
from serving.batch.sources import open_pictures
from serving.model.errors import NoPictures, RegistryError, UserError
from serving.model.predictor import Predictor
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.pictures import png
from tests.helpers.servers import Storage, shell_environment
from tests.helpers.state import CONTRACT_0

pytestmark = pytest.mark.slow
PICTURES = {f"{folder}/{index}.png": png(seed=index) for folder in ("b", "a.b", "a") for index in range(4)}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    directory = tmp_path_factory.mktemp("storage")
    with Storage(directory, shell_environment(directory)) as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        for name, content in {**PICTURES, ".hidden": b""}.items():
            storage.client().put_object(Bucket="mlflow", Key=f"pictures/{name}", Body=content)
        yield storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same pictures on the disk."""
    for name, content in PICTURES.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "pictures"


def predict(source: Path | str, target: Path | str) -> pa.Table:
    pictures = open_pictures(source, "source")
    with BatchPrediction(pictures, Predictor(CONTRACT_0), target, 10_000) as prediction:
        assert sum(1 for _ in prediction.run()) == len(pictures)
    filesystem, path = addresses.located(str(target))
    return parquet.read_table(path, filesystem=filesystem)


def test_an_address_gives_the_rows_that_a_folder_gives(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PART_ROWS", 5)
    expected = predict(folder, tmp_path / "out.parquet")
    assert expected["name"].to_pylist() == sorted(PICTURES)
    target = "s3://mlflow/new/out.parquet"
    assert predict("s3://mlflow/pictures/", target).equals(expected)
    assert summary(target) == summary(tmp_path / "out.parquet")
    found = storage.client().list_objects_v2(Bucket="mlflow", Prefix="new/")["Contents"]
    assert [entry["Key"] for entry in found if entry["Size"]] == ["new/out.parquet"], "nothing is left beside it"


def test_many_parquet_files_are_one_source(storage: Storage, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    contents = [PICTURES[name] for name in sorted(PICTURES)]
    for shard in range(3):
        table = pa.table({"image": contents[4 * shard : 4 * shard + 4]})
        path = tmp_path / "shards" / f"{shard}.parquet"
        parquet.write_table(table, path)
        storage.client().upload_file(str(path), "mlflow", f"shards/{shard}.parquet")
    expected = predict(folder, tmp_path / "out.parquet").drop_columns("name")
    for source in (tmp_path / "shards", "s3://mlflow/shards"):
        table = predict(source, tmp_path / "shards.parquet")
        assert table["name"].to_pylist() == [f"{shard}/{row}" for shard in range(3) for row in range(4)]
        assert table.drop_columns("name").equals(expected)
    one = open_pictures("s3://mlflow/shards/1.parquet", "source")
    assert [file.read() for file in one.read(1, 2)] == contents[5:7]


def test_a_storage_that_refuses_is_no_broken_picture(storage: Storage, tmp_path: Path) -> None:
    pictures = open_pictures("s3://mlflow/pictures", "source")
    storage.refuse(True)
    try:
        with BatchPrediction(pictures, Predictor(CONTRACT_0), tmp_path / "out.parquet", 10_000) as prediction:
            assert_raises_in_words(RegistryError, lambda: [*prediction.run()], "s3://mlflow/pictures")
        assert_raises_in_words(RegistryError, lambda: open_pictures("s3://mlflow/pictures", "source"), "s3://mlflow")
    finally:
        storage.refuse(False)


def test_what_is_not_there_is_said(storage: Storage) -> None:
    for place, error, words in [
        ("s3://mlflow/nothing", NoPictures, "no file in it"),
        ("s3://no-such-bucket/pictures", UserError, "does not exist"),
        ("s3://mlflow/pictures/a/0.png", UserError, "no Parquet file"),
        ("nonsense://place", UserError, "can't be opened"),
    ]:
        assert_raises_in_words(error, lambda place=place: open_pictures(place, "source"), words)
