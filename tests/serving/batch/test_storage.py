"""Sources and targets at S3's addresses, with moto's server."""

import gc
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pytest
from botocore.client import BaseClient
from pyarrow import parquet

from serving.batch import prediction as batch
from serving.batch.prediction import BatchPrediction, summary
from serving.batch.sources import open_pictures
from serving.batch.storage import located
from serving.model.errors import NoPictures, RegistryError, UserError
from serving.model.pictures.storage import Local
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
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        fill(storage)
        yield storage


def fill(storage: Storage) -> None:
    client = storage.client()
    client.create_bucket(Bucket="mlflow")
    for name, content in {**PICTURES, ".hidden": b""}.items():
        client.put_object(Bucket="mlflow", Key=f"pictures/{name}", Body=content)
    for name, value in {"0": {"bytes": b"0"}, "beside": {"path": "beside.png"}}.items():
        column = pa.array([value], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        at, path = located(f"s3://mlflow/{name}.parquet")
        at.write(path, partial(parquet.write_table, pa.table({"image": column})))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same pictures on the disk."""
    for name, content in PICTURES.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "pictures"


def begin(source: Path | str, target: Path | str) -> BatchPrediction:
    return BatchPrediction(open_pictures(source, "source"), Predictor(CONTRACT_0), target, 10_000)


def table_at(target: Path | str) -> pa.Table:
    storage, path = located(str(target))
    with storage.open(path) as file:
        return parquet.read_table(file)


def predict(source: Path | str, target: Path | str) -> pa.Table:
    with begin(source, target) as prediction:
        assert sum(1 for _ in prediction.run()) == len(open_pictures(source, "source"))
    return table_at(target)


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


@contextmanager
def away(storage: Storage) -> Iterator[None]:
    """Nothing answers for a while."""
    storage.server.kill()
    try:
        yield
    finally:
        storage.server.start()
        fill(storage)


def test_an_outage_ends_in_words_that_are_tried_again(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no row of an error and no damaged file, and costs no part that is there."""
    monkeypatch.setattr(batch, "PART_ROWS", 5)
    pictures, shard, beside = (
        open_pictures(f"s3://mlflow/{place}", "source") for place in ("pictures", "0.parquet", "beside.parquet")
    )
    (linked,) = beside.read_from(0)
    with (
        begin("s3://mlflow/pictures", tmp_path / "out.parquet") as reading,
        begin(folder, "s3://mlflow/out.parquet") as writing,
        away(storage),
    ):
        for place, step in (
            ("s3://mlflow/pictures/a.b/0.png", next(pictures.read_from(0)).read),
            ("s3://mlflow/beside.png", linked.read),
            ("s3://mlflow/pictures/", lambda: [*reading.run()]),
            ("s3://mlflow/0.parquet", lambda: [*shard.read_from(0)]),
            ("s3://mlflow/0.parquet", lambda: open_pictures("s3://mlflow/0.parquet", "source")),
            ("s3://mlflow/pictures", lambda: open_pictures("s3://mlflow/pictures", "source")),
            ("s3://mlflow/out.parquet", lambda: [*writing.run()]),
            ("s3://mlflow/out.parquet", lambda: begin(folder, "s3://mlflow/out.parquet").__enter__()),
        ):
            assert_raises_in_words(RegistryError, step, place, "does not answer")
    expected = predict(folder, tmp_path / "expected.parquet")
    assert predict("s3://mlflow/pictures", tmp_path / "out.parquet").equals(expected)
    assert predict(folder, "s3://mlflow/out.parquet").equals(expected)


@pytest.mark.parametrize("lost", ["removed", "cut", "changed"])
@pytest.mark.parametrize("place", ["", "s3://mlflow/"])
def test_a_part_that_is_lost_is_made_anew(
    storage: Storage, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, lost: str
) -> None:
    monkeypatch.setattr(batch, "PART_ROWS", 3)
    expected = predict(folder, tmp_path / "expected.parquet")
    target = f"{place or f'{tmp_path}/'}{lost}.parquet"
    with begin(folder, target) as begun:
        assert sum(1 for _ in islice(begun.run(), 10)) == 10
    at, path = located(target)
    part = f"{path}.parts/000001.parquet"
    content = at.read(part)
    if lost == "removed":
        at.remove(part)
    elif lost == "cut":
        at.write(part, lambda file: file.write(content[:-20]))
    else:  # seen when it is read
        middle = content.index(b"a.b/3.png")
        at.write(part, lambda file: file.write(content[:middle] + b"another.n" + content[middle + 9 :]))
        with begin(folder, target) as merging:
            assert_raises_in_words(RegistryError, lambda: [*merging.run()], "000001.parquet is damaged")
    with begin(folder, target) as rest:
        assert rest.rows_left == (3 if lost == "changed" else 6)
        assert sum(1 for _ in rest.run()) == (3 if lost == "changed" else 6)
    assert table_at(target).equals(expected)
    assert not [*at.entries(f"{path}.parts")]


@pytest.mark.parametrize("place", ["s3://mlflow/cut/", "memory://cut/", ""])
def test_a_file_that_is_cut_off_is_not_there(storage: Storage, tmp_path: Path, place: str) -> None:
    content = os.urandom(2**21) * 10  # more than one request sends

    def cut_off(file: IO[bytes]) -> None:
        file.write(content)
        raise KeyboardInterrupt

    at, path = located(f"{place or f'{tmp_path}/'}out")
    with pytest.raises(KeyboardInterrupt):
        at.write(path, cut_off)
    assert not at.is_file(path)
    at.write(path, lambda file: file.write(content))
    assert at.read(path) == content


@pytest.mark.parametrize("place", ["s3://mlflow/signs/", "memory://signs/", ""])
def test_names_are_read_as_they_are(storage: Storage, tmp_path: Path, place: str) -> None:
    at, path = located(place or str(tmp_path))
    names = ["100%.png", "100%25.png", "a.png", "a.png#1", "a::b.png", "a?b.png", "a b+c.png", "ä/é.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        at.write(f"{path.rstrip('/')}/{name}", lambda file, name=name: file.write(name.encode()))
    pictures = open_pictures(place or tmp_path, "source")
    portion = pickle.loads(pickle.dumps(pictures.portion(0, len(pictures))))
    assert {file.name: file.read().decode() for file in portion()} == {name: name for name in names}


def test_pictures_share_a_client(storage: Storage) -> None:
    """Each client has its own sockets, and megabytes."""

    def clients() -> int:
        gc.collect()
        return sum(isinstance(each, BaseClient) for each in gc.get_objects())

    files = [*open_pictures("s3://mlflow/pictures", "source").read_from(0)]
    before = clients()
    assert {file.name: file.read() for file in files} == PICTURES
    assert clients() <= before


def test_other_processes_open_the_files_of_their_portion_alone(tmp_path: Path) -> None:
    for shard in range(3):
        parquet.write_table(
            pa.table({"image": [f"{shard} {row}".encode() for row in range(4)]}), tmp_path / f"{shard}.parquet"
        )
    pictures = open_pictures(tmp_path, "source")
    one, other, both = (pickle.loads(pickle.dumps(pictures.portion(*rows))) for rows in ((5, 2), (8, 1), (3, 2)))
    (tmp_path / "0.parquet").unlink()
    assert [(file.name, file.read()) for file in one()] == [("1/1", b"1 1"), ("1/2", b"1 2")]
    assert [(file.name, file.read()) for file in other()] == [("2/0", b"2 0")]
    os.utime(tmp_path / "1.parquet", (0, 0))
    assert_raises_in_words(UserError, lambda: [*both()], "0.parquet", "is not there on the node")
    assert_raises_in_words(UserError, lambda: [*one()], "1.parquet", "is not there on the node")


def test_what_is_removed_while_a_folder_is_listed_takes_nothing_with_it(folder: Path) -> None:
    """An upload's temporary file, say."""
    entries = Local().entries(str(folder))
    listed = {next(entries).name, next(entries).name}  # a folder, and a file in it
    (inside,) = {Path(name).parent for name in listed} - {Path()}
    gone = next(path for path in (folder / inside).iterdir() if path.relative_to(folder).as_posix() not in listed)
    gone.unlink()
    listed |= {entry.name for entry in entries}
    assert {*PICTURES} - listed == {gone.relative_to(folder).as_posix()}


def test_a_parquet_file_that_is_written_anew_is_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/_SUCCESS").touch()  # as Spark leaves it

    def names() -> list[str]:
        source = open_pictures(tmp_path / "source", "source")
        return [file.name for file in source.portion(0, len(source))()]

    for count in (1, 3):
        column = pa.array([b"picture"] * count)
        parquet.write_table(pa.table({"image": column}), tmp_path / "source/0.parquet")
        assert names() == [f"0/{row}" for row in range(count)]
    assert "not 1 other files" in caplog.text


def test_paths_need_not_be_utf_8(folder: Path, tmp_path: Path) -> None:
    expected = predict(folder, tmp_path / "expected.parquet")
    odd = tmp_path / os.fsdecode(b"\xff")
    odd.mkdir()
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"0\xfe.png"))
    folder.rename(odd / "pictures")
    table = predict(odd / "pictures", odd / "out.parquet")
    assert table["name"].to_pylist()[0] == r"a.b/0.png"
    assert r"a/0\xfe.png" in table["name"].to_pylist()
    assert table.drop_columns("name").equals(expected.drop_columns("name"))
    assert summary(odd / "out.parquet") == summary(tmp_path / "expected.parquet")
    parquet.write_table(pa.table({"image": [b"1"]}), tmp_path / "1.parquet")
    (tmp_path / "1.parquet").rename(odd / "1.parquet")
    (file,) = open_pictures(odd / "1.parquet", "source").portion(0, 1)()
    assert file.read() == b"1"


def test_what_is_refused_is_said_at_once(storage: Storage, folder: Path, tmp_path: Path) -> None:
    with begin("s3://mlflow/pictures", tmp_path / "out.parquet") as prediction:
        storage.refuse(True)
        try:
            for step in (
                lambda: [*prediction.run()],
                lambda: open_pictures("s3://mlflow/pictures", "source"),
                lambda: begin(folder, "s3://mlflow/out.parquet").__enter__(),
            ):
                assert_raises_in_words(UserError, step, "s3://mlflow/", "refused", "InvalidAccessKeyId")
        finally:
            storage.refuse(False)


def test_what_is_not_there_is_said(storage: Storage) -> None:
    for place, error, words in [
        ("s3://mlflow/nothing", NoPictures, "no file in it"),
        ("s3://no-such-bucket/pictures", UserError, "does not exist"),
        ("s3://no-such-bucket", UserError, "does not exist"),
        ("s3://Bad_Bucket!/pictures", UserError, "is refused"),
        ("s3://", UserError, "names no place"),
        ("memory://nothing", NoPictures, "no file in it"),
        ("s3://mlflow/pictures/a/0.png", UserError, "no Parquet file"),
        ("nonsense://place", UserError, "can't be opened"),
    ]:
        assert_raises_in_words(error, lambda place=place: open_pictures(place, "source"), words)
