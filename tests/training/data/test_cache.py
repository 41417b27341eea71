"""Pictures decoded once."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.model.errors import UserError
from serving.model.pictures.decoding import decode
from training.data import sources
from training.data.cache import Cache, Cached


def load(folder: Path, cache: Path, broken: str = "refuse") -> Cached:
    return Cache(cache, broken).load(partial(sources.folder, str(folder)))


def test_the_cache_holds_the_pixels_of_the_files(image_folder: Path, tmp_path: Path) -> None:
    _, classes, splits = load(image_folder, tmp_path / "cache")
    assert classes == ["green", "red"]
    for split, pictures in splits.items():
        assert len(pictures) == 12
        for index, name in enumerate(pictures.names):
            path = image_folder / name
            assert path.parent.name == classes[pictures.labels[index]]
            assert path.parent.parent.name == split
            np.testing.assert_array_equal(pictures[index], decode(path.read_bytes()))


def test_the_cache_is_used_again_and_follows_the_content(image_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, *_ = load(image_folder, cache)
    (entry,) = cache.iterdir()
    written = entry.stat().st_mtime_ns
    assert load(image_folder, cache)[0] == first
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]

    Image.new("RGB", (20, 20)).save(image_folder / "train" / "red" / "0.png")
    assert load(image_folder, cache)[0] != first
    assert len(list(cache.iterdir())) == 2


def test_broken_pictures_are_named_counted_and_refused_or_skipped(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0.png", "1.jpg"):
        path = image_folder / "train" / "red" / name
        path.write_bytes(path.read_bytes()[:100])
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"2 of the pictures.*train/red/0.png.*train/red/1.jpg") as refusal:
        load(image_folder, cache)
    assert "data.broken=skip" in str(refusal.value)
    assert list(cache.iterdir()) == [], "nothing half-written stays"

    for _ in range(2):  # also where the cache has been written before
        caplog.clear()
        _, _, splits = load(image_folder, cache, "skip")
        assert len(splits["train"]) == 10
        assert "2 of the pictures" in caplog.text


@pytest.mark.parametrize("labels", [("red",), ("red", "green")])
def test_a_class_of_broken_pictures_is_refused(labels: tuple[str, ...], image_folder: Path, tmp_path: Path) -> None:
    for label in labels:
        for path in (image_folder / "test" / label).iterdir():
            path.write_bytes(b"broken")
    with pytest.raises(UserError, match=rf"none of the pictures in test/{min(labels)}/ can be decoded"):
        load(image_folder, tmp_path / "cache", "skip")


def test_batches_hold_every_picture_once_in_one_size_each(image_folder: Path, tmp_path: Path) -> None:
    pictures = load(image_folder, tmp_path / "cache").splits["train"]
    seen = []
    for indices, images in pictures.batches(4):
        assert len(images) <= 4
        for index, image in zip(indices, images, strict=True):
            np.testing.assert_array_equal(image, pictures[index])
        seen += list(indices)
    assert sorted(seen) == list(range(12))


def test_a_picture_that_can_not_be_read_is_named_like_a_broken_one(image_folder: Path, tmp_path: Path) -> None:
    os.symlink("nowhere.jpg", image_folder / "train" / "red" / "dangling.jpg")
    with pytest.raises(UserError, match=r"1 of the pictures.*train/red/dangling.jpg \(The file can't be read"):
        load(image_folder, tmp_path / "cache")
    assert len(load(image_folder, tmp_path / "cache", "skip").splits["train"]) == 12
