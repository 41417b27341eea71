import shutil
import tarfile
from pathlib import Path

import pytest

from training import sources
from training.errors import UserError


def contents(root: Path) -> list[tuple[str, str, bytes]]:
    return sorted((item.split, item.label, bytes(item.content)) for item in sources.folder(str(root)))


def test_a_folder_and_archives_of_it_hold_the_same_pictures(image_folder: Path, tmp_path: Path) -> None:
    expected = contents(image_folder)
    assert len(expected) == 24
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / kind), kind, image_folder.parent, image_folder.name)
        assert contents(Path(archive)) == expected


@pytest.mark.parametrize("root", ["", "/no/such/place"])
def test_a_missing_path_is_named(root: str) -> None:
    with pytest.raises(UserError, match=f"{root}.*does not exist"):
        list(sources.folder(root))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pictures under train/<class>/"):
        list(sources.folder(str(tmp_path)))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").write_text("not a zip")
    with pytest.raises(UserError, match="nor a zip or tar archive"):
        list(sources.folder(str(tmp_path / "pictures.zip")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_folder_without_pictures_is_named(image_folder: Path, split: str) -> None:
    for path in (image_folder / split / "green").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"no pictures in {split}/green/"):
        list(sources.folder(str(image_folder)))


def test_one_class_is_too_few(image_folder: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(image_folder / split / "red")
    with pytest.raises(UserError, match=r"only one class \(green\)"):
        list(sources.folder(str(image_folder)))


def test_a_damaged_archive_is_refused(image_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "pictures.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(image_folder, "pictures")
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(UserError, match="archive is damaged"):
        list(sources.folder(str(archive)))


def test_the_digits_are_all_there() -> None:
    items = list(sources.digits())
    assert len(items) == 1797
    assert {item.label for item in items} == set("0123456789")
    assert {item.split for item in items} == {"train", "test"}
