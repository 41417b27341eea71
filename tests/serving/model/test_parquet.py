"""Parquet files of pictures."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch.sources import open_pictures
from serving.model.errors import PictureError, UserError
from tests.helpers.commands import assert_in_words

CONTENT = [bytes([number]) * 10 for number in range(30)]


def write(path: Path, **columns: object) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=7)
    return path


@pytest.mark.parametrize("start", [0, 1, 7, 20, 30])
def test_its_rows_are_read_from_the_middle(start: int, tmp_path: Path) -> None:
    structs = [{"bytes": content, "path": f"{number}.jpg"} for number, content in enumerate(CONTENT)]
    for path, suffix in (
        (write(tmp_path / "plain.parquet", image=CONTENT, thumbnail=[b""] * 30), ""),
        (write(tmp_path / "of_hugging_face", label=[0] * 30, picture=structs), ".jpg"),
    ):
        pictures = open_pictures(path, "source")
        assert len(pictures) == 30
        found = [(file.name, file.read()) for file in pictures.read_from(start)]
        assert found == [(f"{number}{suffix}", CONTENT[number]) for number in range(start, 30)]


def test_a_null_is_an_empty_file(tmp_path: Path) -> None:
    (file,) = open_pictures(write(tmp_path / "a.parquet", image=pa.array([None], pa.binary())), "source").read_from(0)
    assert file.read() == b""


def test_what_can_not_be_opened_is_named_in_two_lines(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    write(tmp_path / "labels.parquet", label=[1])
    write(tmp_path / "two.parquet", a=[b""], b=[b""])
    for name, words in [
        ("damaged.parquet", "damaged"),
        ("labels.parquet", "no column of bytes among label"),
        ("two.parquet", "several columns of bytes among a, b"),
    ]:
        with pytest.raises(UserError) as refusal:
            open_pictures(tmp_path / name, "source")
        assert_in_words(str(refusal.value), f"source={tmp_path / name}", words)


def test_a_row_may_name_a_file_beside_it(tmp_path: Path) -> None:
    """As `datasets` writes pictures that it does not embed; never one outside of the folder."""
    (tmp_path / "a.png").write_bytes(b"picture")
    structs = pa.array(
        [{"bytes": None, "path": path} for path in ("a.png", "nothing.png", "../a.png", "/etc/hostname")],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    (tmp_path / "set").mkdir()
    files = list(open_pictures(write(tmp_path / "a.parquet", image=structs), "source").read_from(0))
    assert files[0].read() == b"picture"
    with pytest.raises(PictureError, match=r"nothing\.png"):
        files[1].read()
    assert [file.read() for file in files[2:]] == [b"", b""]
