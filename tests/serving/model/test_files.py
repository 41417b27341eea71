"""One reader of folders and archives: the same files, the same words where they are damaged."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.batch.sources import open_pictures
from serving.model.errors import PictureError, UserError
from serving.model.pictures.files import Files
from serving.model.pictures.listing import open_files
from tests.helpers.commands import assert_raises_in_words


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return target


def tarred(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w:xz" if target.suffix == ".xz" else "w") as file:
        file.add(folder, ".")
    return target


ARCHIVES: dict[str, Callable[[Path, Path], Path]] = {"a.zip": zipped, "a.tar": tarred, "a.tar.xz": tarred}


def contents(files: Files, start: int = 0) -> list[tuple[str, bytes]]:
    return [(file.name, file.read()) for file in files.read_from(start)]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_holds_what_its_folder_holds(name: str, image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "train" / "empty").mkdir()
    (image_folder / ".hidden").mkdir()
    for hidden in (".hidden/a.png", "train/._red", "__MACOSX"):
        (image_folder / hidden).write_bytes(b"what systems leave behind")
    folder = open_files(image_folder, "source")
    archive = open_files(ARCHIVES[name](image_folder, tmp_path / name), "source")
    assert len(folder) == len(archive) == 24
    assert sorted(contents(archive)) == contents(folder)
    assert {"train/empty", "test/red"} <= folder.folders
    assert archive.folders - {"."} == folder.folders


@pytest.mark.parametrize("name", ["", *ARCHIVES])
def test_it_can_be_read_from_the_middle(name: str, image_folder: Path, tmp_path: Path) -> None:
    files = open_pictures(ARCHIVES[name](image_folder, tmp_path / name) if name else image_folder, "source")
    everything = contents(files)
    for start in (1, 5, len(files)):
        assert contents(files, start) == everything[start:]


def test_a_zip_file_as_the_last_member_of_a_tar_archive_leaves_it_a_tar_archive(
    image_folder: Path, tmp_path: Path
) -> None:
    zipped(image_folder / "train", tmp_path / "last.zip")
    with tarfile.open(tmp_path / "all.tar", "w") as file:
        file.add(image_folder / "test" / "red" / "1.jpg", "first.jpg")
        file.add(tmp_path / "last.zip", "last.zip")
    assert [name for name, _ in contents(open_files(tmp_path / "all.tar", "source"))] == ["first.jpg", "last.zip"]


def unreadable(files: Files, name: str) -> str:
    (message,) = (reason(file.read) for file in files.read_from(0) if file.name == name)
    return message


def reason(read: Callable[[], bytes]) -> str:
    with pytest.raises(PictureError) as problem:
        read()
    assert problem.value.code == "unreadable"
    return problem.value.message


def test_a_link_to_nothing_is_unreadable_and_a_link_to_a_file_is_that_file(image_folder: Path, tmp_path: Path) -> None:
    os.symlink("nowhere.jpg", image_folder / "dangling.jpg")
    os.symlink("test/red/1.jpg", image_folder / "linked.jpg")
    expected = (image_folder / "test" / "red" / "1.jpg").read_bytes()
    for path in (image_folder, tarred(image_folder, tmp_path / "a.tar")):
        files = open_files(path, "source")
        assert "can't be read" in unreadable(files, "dangling.jpg")
        assert [file.read() for file in files.read_from(0) if file.name == "linked.jpg"] == [expected]


def test_a_damaged_member_is_unreadable_and_the_others_are_not(image_folder: Path, tmp_path: Path) -> None:
    path = zipped(image_folder, tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    picture = (image_folder / "test" / "red" / "1.jpg").read_bytes()
    content[content.index(picture) + len(picture) // 2] ^= 255
    path.write_bytes(content)
    files = open_files(path, "source")
    assert "Bad CRC-32" in unreadable(files, "test/red/1.jpg")
    assert len([file for file in files.read_from(0) if file.name != "test/red/1.jpg" and file.read()]) == 23


def test_a_locked_zip_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "locked.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.png", b"secret")
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    path.write_bytes(content)
    assert "encrypted" in unreadable(open_files(path, "source"), "a.png")


def test_what_can_not_be_opened_is_named_in_two_lines(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), "gztar", image_folder))
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:-2000])
    (tmp_path / "cut.zip").write_bytes(zipped(image_folder, tmp_path / "a.zip").read_bytes()[:-200])
    for name, words in [
        ("nowhere", "does not exist"),
        ("empty", "no file in it"),
        ("notes.txt", "neither a folder nor a whole zip or tar archive"),
        ("cut.tar.gz", "damaged"),
        ("cut.zip", "neither a folder nor a whole zip or tar archive"),
    ]:
        path = tmp_path / name
        assert_raises_in_words(UserError, lambda path=path: open_pictures(path, "source"), f"source={path}", words)


def test_the_fingerprint_follows_names_sizes_and_times(image_folder: Path) -> None:
    before = open_files(image_folder, "source").fingerprint
    assert open_files(image_folder, "source").fingerprint == before
    os.utime(image_folder / "test" / "red" / "1.jpg", (0, 0))
    touched = open_files(image_folder, "source").fingerprint
    (image_folder / "test" / "red" / "1.jpg").rename(image_folder / "test" / "red" / "one.jpg")
    assert len({before, touched, open_files(image_folder, "source").fingerprint}) == 3


def test_a_pipe_is_unreadable_and_nobody_waits_for_it(image_folder: Path) -> None:
    os.mkfifo(image_folder / "pipe.jpg")
    assert "it is no file" in unreadable(open_pictures(image_folder, "source"), "pipe.jpg")


def test_the_last_of_two_members_of_one_name_counts(tmp_path: Path) -> None:
    """It is what unpacking would leave."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.png", b"last")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"first", b"last"):
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for name in ("a.zip", "a.tar"):
        assert contents(open_files(tmp_path / name, "source")) == [("a.png", b"last")]


def test_a_zip_of_an_unknown_method_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"picture")
    content = bytearray(path.read_bytes())
    for header, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(header) + method] = 9
    path.write_bytes(content)
    assert_raises_in_words(UserError, lambda: open_files(path, "source"), "deflate64", "pack it as")


def test_hard_links_in_a_tar_archive_are_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        content = b"picture"
        member = tarfile.TarInfo("a.jpg")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        file.addfile(link)
    assert contents(open_files(tmp_path / "a.tar", "source")) == [("a.jpg", b"picture"), ("b.jpg", b"picture")]
