"""Where pictures come from."""

import shutil
from pathlib import Path

import pytest

from serving.model.errors import UserError
from training.data import sources


def contents(root: Path) -> list[tuple[str, str, bytes]]:
    return sorted((item.split, item.label, bytes(item.read())) for item in sources.folder(str(root)))


def test_a_folder_and_archives_of_it_hold_the_same_pictures(image_folder: Path, tmp_path: Path) -> None:
    """Also where a folder lies above train/ and test/, as archives often have one."""
    expected = contents(image_folder)
    assert len(expected) == 24
    assert contents(image_folder.parent) == expected
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / kind), kind, image_folder.parent, image_folder.name)
        assert contents(Path(archive)) == expected


def test_a_missing_path_is_named() -> None:
    with pytest.raises(UserError, match="/no/such/place does not exist"):
        list(sources.folder("/no/such/place"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pictures under train/<class>/"):
        list(sources.folder(str(tmp_path)))


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


def test_the_digits_are_all_there() -> None:
    items = list(sources.digits())
    assert len(items) == 1797
    assert {item.label for item in items} == set("0123456789")
    assert {item.split for item in items} == {"train", "test"}
