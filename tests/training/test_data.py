from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import sources
from training.config import compose_config
from training.data import AlbumentationsDataset, ImageLoader, build_transform, decode, load_data, stratified_sample
from training.errors import UserError


def load(folder: Path, cache: Path, broken: str = "refuse"):  # type: ignore[no-untyped-def]
    return ImageLoader(cache, broken).load(partial(sources.folder, str(folder)))


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


def test_the_split_is_stratified_seeded_and_apart(state_dir: Path) -> None:
    config = compose_config(["data=digits"])
    data, again, other = (load_data(config.data, seed) for seed in (1, 1, 2))
    names = [set(data.train.names), set(data.validation.names), set(data.test.names)]
    assert sum(map(len, names)) == len(set.union(*names)) == 1797
    share = np.bincount(data.validation.labels) / np.bincount(data.train.labels)
    np.testing.assert_allclose(share, 1 / 9, atol=0.01)
    np.testing.assert_array_equal(data.train.names, again.train.names)
    assert set(other.train.names) != names[0]
    assert set(other.test.names) == names[2], "the test set does not depend on a seed"


def test_a_sample_keeps_the_proportions() -> None:
    config = compose_config(["data=digits"])
    sample = stratified_sample(load_data(config.data, 1).train, 100, 1)
    assert set(np.bincount(sample.labels)) <= {9, 10, 11}


@pytest.mark.parametrize("leave_out", [1, 5, 700])
def test_a_sample_has_the_size_that_was_asked_for(leave_out: int) -> None:
    pictures = load_data(compose_config(["data=digits"]).data, 1).train
    sample = stratified_sample(pictures, len(pictures) - leave_out, 1)
    assert len(sample) == len(set(sample.names)) == len(pictures) - leave_out


def test_batches_hold_every_picture_once_in_one_size_each(image_folder: Path, tmp_path: Path) -> None:
    pictures = load(image_folder, tmp_path / "cache")[2]["train"]
    seen = []
    for indices, images in pictures.batches(4):
        assert len(images) <= 4
        for index, image in zip(indices, images, strict=True):
            np.testing.assert_array_equal(image, pictures[index])
        seen += list(indices)
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(("transforms", "size"), [("reference", 64), ("no_coarse_dropout", 64), ("native", 8)])
def test_augmented_pictures_have_one_size_and_follow_the_seed(transforms: str, size: int) -> None:
    config = compose_config(["data=digits", f"transforms={transforms}"])
    data = load_data(config.data, 1)

    def epoch(seed: int) -> torch.Tensor:
        dataset = AlbumentationsDataset(data.train, build_transform(config.transforms, data.train.common_size(), 64))
        dataset.transform.set_random_seed(seed)
        return torch.stack([dataset[index][0] for index in range(8)])

    assert epoch(1).shape == (8, size, size, 3)
    assert epoch(1).dtype == torch.uint8
    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (10, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode((tmp_path / "turned.jpg").read_bytes()).shape == (10, 20, 3)


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(grey).save(tmp_path / "grey.png")
    pixels = decode((tmp_path / "grey.png").read_bytes())
    np.testing.assert_array_equal(pixels, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))
