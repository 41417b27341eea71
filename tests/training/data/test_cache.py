"""Pictures decoded once."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.model.errors import UserError
from serving.model.pictures.decoding import AS_SHOWN, Decoding, decode
from training.data import sources
from training.data.cache import Cache, Cached


def load(folder: Path, cache: Path, decoding: Decoding = AS_SHOWN) -> Cached:
    return Cache(cache, "refuse", decoding).load(partial(sources.folder, str(folder)))


def test_the_cache_holds_the_pixels_of_the_files(image_folder: Path, tmp_path: Path) -> None:
    _, classes, splits, _ = load(image_folder, tmp_path / "cache")
    assert classes == ["green", "red"]
    for split, pictures in splits.items():
        assert len(pictures) == (0 if split == "validation" else 12)
        for index, name in enumerate(pictures.names):
            path = image_folder / name
            assert path.parent.name == classes[pictures.labels[index]]
            assert path.parent.parent.name == split
            np.testing.assert_array_equal(pictures[index], decode(path.read_bytes()))


def test_the_cache_is_used_again_and_follows_the_content(image_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, *_ = load(image_folder, cache)
    (entry,) = cache.iterdir()
    written = (entry / "train").stat().st_mtime_ns
    assert load(image_folder, cache)[0] == first
    assert [(path / "train").stat().st_mtime_ns for path in cache.iterdir()] == [written]

    Image.new("RGB", (20, 20)).save(image_folder / "train" / "red" / "0.png")
    assert load(image_folder, cache)[0] != first
    assert len(list(cache.iterdir())) == 2


def test_nothing_half_written_stays(image_folder: Path, tmp_path: Path) -> None:
    path = image_folder / "train" / "red" / "0.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="1 of the pictures"):
        load(image_folder, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_decoding_is_another_entry(image_folder: Path, tmp_path: Path) -> None:
    large = load(image_folder, tmp_path / "cache")
    small = load(image_folder, tmp_path / "cache", Decoding(shorter_side=12))
    assert small.fingerprint == large.fingerprint
    assert large.splits["train"].sizes.min() == 20
    assert 6 <= small.splits["train"].sizes.min() <= 12
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_batches_hold_every_picture_once_in_one_size_each(image_folder: Path, tmp_path: Path) -> None:
    pictures = load(image_folder, tmp_path / "cache").splits["train"]
    seen = []
    batches = pictures.batches(4)
    assert len(batches) == sum(1 for _ in batches)
    for indices, images in batches:
        assert len(images) <= 4
        for index, image in zip(indices, images, strict=True):
            np.testing.assert_array_equal(image, pictures[index])
        seen += list(indices)
    assert sorted(seen) == list(range(12))


def test_a_batch_of_large_pictures_is_small(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.pictures.BATCH_BYTES", 2 * 20 * 30 * 3)
    pictures = load(image_folder, tmp_path / "cache").splits["train"]
    assert max(len(indices) for indices, _ in pictures.batches(64)) <= 2
