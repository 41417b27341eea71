"""Where pictures come from; the forms that people's own have are in test_layouts.py."""

import shutil
from pathlib import Path

import pytest

from serving.model.errors import UserError
from training.data import sources


def contents(root: Path) -> list[tuple[str, str, bytes]]:
    items = [item for item in sources.folder(str(root)) if isinstance(item, sources.Item)]
    return sorted((item.split, item.label, bytes(item.read())) for item in items)


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
    with pytest.raises(UserError, match="there are no folders of classes"):
        list(sources.folder(str(tmp_path)))


def test_the_digits_are_all_there() -> None:
    items = list(sources.digits())
    assert len(items) == 1797
    assert {item.label for item in items} == set("0123456789")
    assert {item.split for item in items} == {"train", "test"}
