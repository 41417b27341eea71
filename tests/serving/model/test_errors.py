"""Which failures have words for people, and what becomes of them at a command's edge."""

import errno
import os
import sqlite3

import pytest

from serving.model.errors import (
    ModelError,
    PictureError,
    RegistryError,
    UserError,
    exit_in_words,
    first_line,
    full_disk,
    in_words,
    is_out_of_memory,
    without_credentials,
)

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/file")


def caused(by: BaseException) -> Exception:
    """As a library wraps what it got."""
    try:
        raise RuntimeError("could not be written") from by
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("error", [UserError("a\nb"), ModelError("no such model"), RegistryError("away")])
def test_what_has_words_ends_with_code_2_and_without_a_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, exit_in_words():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("error", [ValueError("a mistake"), PictureError("broken_picture", "x"), MemoryError()])
def test_a_mistake_of_ours_goes_on_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), exit_in_words():
        raise error
    assert in_words(error) is None


@pytest.mark.parametrize(
    "error",
    [
        NO_SPACE,
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/file"),
        caused(NO_SPACE),
        caused(caused(NO_SPACE)),
    ],
)
def test_a_full_disk_is_named_whoever_wrote_to_it(error: Exception) -> None:
    assert full_disk(error) == "/data/file"
    words = in_words(error)
    assert words is not None
    assert "the disk of /data/file is full" in words
    assert len(words.splitlines()) == 2


def test_a_full_disk_that_is_not_named_is_one_of_those_that_are_written_to(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("CREATE TABLE t (x)")
    assert full_disk(full.value)
    assert full_disk(RegistryError("the registry does not answer")) is None


def test_full_shared_memory_is_not_a_full_disk() -> None:
    """What PyTorch's data loader says of it."""
    error = RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)")
    words = in_words(error)
    assert words is not None
    assert "/dev/shm" in words
    assert "trainer.num_workers=0" in words
    assert len(words.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://ann:pw@host:5000/x?y=1, too", "at https://host:5000/x?y=1, too"),
        ("postgresql+psycopg2://ann:p@w@host/db and s3://key:pw@host", "postgresql+psycopg2://host/db and s3://host"),
        ("https:/ann:pw@host/x.zip", "https:/host/x.zip"),  # as a path
        ("SignatureDoesNotMatch: a-secret-key", "SignatureDoesNotMatch: ***"),
        ("refused: the-storage-s key, ann:their-password or their-password", "refused: *** key, *** or ***"),
        *((each, each) for each in ("models:/NAME@ALIAS", "ann@host", "http://host/@x", "/data/a@b", "sqlite:////a@b")),
    ],
)
def test_what_is_told_holds_no_credential(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    monkeypatch.setenv("S3_SECRET_KEY", "the-storage-s")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:their-password")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/data/a@b")
    assert without_credentials(text) == str(UserError(text)) == str(RegistryError(text)) == shown


def test_a_size_that_a_damaged_picture_claims_is_no_lack_of_memory() -> None:
    said = "Memory allocation error: {}: Image size 16777280x64 exceeds the maximum image size 1073741824"
    assert not is_out_of_memory(RuntimeError(said.format("Security limit exceeded")))  # as libheif words it
    assert is_out_of_memory(RuntimeError(said.format("Unspecified")))


@pytest.mark.parametrize(
    ("error", "line"), [(OSError("\nno route\nto the host"), "no route"), (TimeoutError(), "TimeoutError")]
)
def test_of_an_error_its_first_line_is_told_or_its_class(error: Exception, line: str) -> None:
    assert first_line(error) == line
