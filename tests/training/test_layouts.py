"""Whatever form a data set has: which pictures are used, for what, and what is left out and why."""

import io
import json
import os
import shutil
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from serving.model.errors import UserError
from serving.model.pictures.decoding import AS_SHOWN
from tests.helpers.commands import assert_raises_in_words
from tests.helpers.pictures import encoded
from training.config import compose
from training.data.split import ImageData, load_data

COUNT = 12  # pictures of a class in a split
FORMATS = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".JPG": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".png": "PNG", "": "PNG"},
    **{".tif": "TIFF", ".avif": "AVIF", ".ppm": "PPM", ".jp2": "JPEG2000", ".heic": "HEIF", ".webp": "WEBP"},
    **{".gif": "GIF", ".bmp": "BMP", ".ico": "ICO", ".mpo": "MPO", ".jpg.png": "WEBP"},
}


def picture(seed: int, form: str = "PNG", side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return encoded(Image.fromarray(pixels), form, **({"sizes": [(side, side)]} if form == "ICO" else {}))


def write(root: Path, names: Sequence[str]) -> Path:
    """Writes another picture to each name."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    return root


def pictures(*folders: str, count: int = COUNT) -> list[str]:
    return [f"{folder}/{index}.png" for folder in folders for index in range(count)]


def load(root: Path, *overrides: str, seed: int = 1) -> ImageData:
    settings = compose(["data=folder", f"data.root={root}", f"data.cache_dir={root.parent}/cache", *overrides])
    return load_data(settings.data, seed, AS_SHOWN)


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def used(data: ImageData) -> int:
    return sum(sizes(data))


TRAIN_TEST = pictures("train/cat", "train/dog", "test/cat", "test/dog")
GIVEN, BY_SEED, BY_CONTENT = "given", "by the seed", "by the pictures' content"


@pytest.mark.parametrize(
    ("names", "counts", "validation", "test"),
    [
        pytest.param(TRAIN_TEST, (21, 3, 24), BY_SEED, GIVEN, id="train and test"),
        pytest.param([f"Train/{n[6:]}" for n in TRAIN_TEST[:24]] + [f"TEST/{n[5:]}" for n in TRAIN_TEST[24:]],
                     (21, 3, 24), BY_SEED, GIVEN, id="in capitals"),
        pytest.param(pictures("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog"),
                     (24, 24, 24), GIVEN, GIVEN, id="train, val and test"),
        pytest.param(pictures("training/cat", "training/dog", "valid/cat", "valid/dog"),
                     None, GIVEN, BY_CONTENT, id="training and valid"),
        pytest.param(pictures("cat", "dog", count=40), None, BY_SEED, BY_CONTENT, id="classes without a split"),
        pytest.param(pictures("archive/photos/cat", "archive/photos/dog", count=40),
                     None, BY_SEED, BY_CONTENT, id="below other folders"),
        pytest.param([f"set/{name}" for name in TRAIN_TEST], (21, 3, 24), BY_SEED, GIVEN, id="train below a folder"),
        pytest.param(pictures("train/cat/images", "train/dog/a/b", "test/cat", "test/dog"),
                     (21, 3, 24), BY_SEED, GIVEN, id="folders inside of a class"),
        pytest.param(pictures("cat", "cat/more", "dog", count=40), None, BY_SEED, BY_CONTENT, id="folders in classes"),
        pytest.param(pictures("training-day/cat", "training-day/dog", count=40),
                     None, BY_SEED, BY_CONTENT, id="no split by its name"),
    ],
)  # fmt: skip
def test_a_layout_is_understood(
    names: list[str], counts: tuple[int, int, int] | None, validation: str, test: str, tmp_path: Path
) -> None:
    data = load(write(tmp_path / "set", names))
    assert data.classes == ["cat", "dog"]
    assert used(data) == len(names)
    assert not data.left_out
    if counts:
        assert sizes(data) == counts
    else:
        assert 0.05 < len(data.test) / used(data) < 0.4
    assert data.origins["validation"].endswith(validation)
    assert data.origins["test"].endswith(test)
    for split, pictures_ in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        assert f"{split}" in data.table()
        for name, label in zip(pictures_.names, pictures_.labels, strict=True):
            assert f"/{data.classes[label]}/" in f"/{name}", "every picture has the label of its folder"


def test_files_are_known_by_their_content_not_by_their_suffix(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    for seed, (suffix, form) in enumerate(FORMATS.items()):
        (root / "train" / "cat" / f"of{suffix or '-no'}{suffix}").write_bytes(picture(100 + seed, form))
    data = load(root)
    assert used(data) == len(TRAIN_TEST) + len(FORMATS)
    assert not data.left_out


def test_every_file_is_used_or_named_with_its_reason(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    for name, content in {
        "train/cat/notes.txt": b"not a picture",
        "train/cat/empty.png": b"",
        "train/cat/page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "train/loose.png": picture(1),
        "README.md": b"# Cats",
        "extra/cat/1.png": picture(2),
        "train/cat/.DS_Store": b"hidden",
        "train/.ipynb_checkpoints/a.png": picture(3),
        "__MACOSX/train/cat/._1.png": b"hidden",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    data = load(root)
    assert used(data) == len(TRAIN_TEST)
    left_out = {entry.name: entry.kind for entry in data.left_out}
    assert left_out == {
        "train/cat/notes.txt": "not a picture",
        "train/cat/empty.png": "not a picture",
        "train/cat/page.eps": "not a picture",
        "train/loose.png": "in no class's folder",
        "README.md": "outside of train/, validation/ and test/",
        "extra/cat/1.png": "outside of train/, validation/ and test/",
        "(3 files or folders)": "hidden",
    }
    details = {entry.name: entry.detail for entry in data.left_out}
    assert details["train/cat/empty.png"] == "The file is empty."
    assert "left out, not a picture: 3, such as train/cat/" in data.table()


def broken_files(root: Path) -> dict[str, str]:
    """Makes some pictures broken; returns the reasons by their names."""
    whole = picture(0, "JPEG", side=64)
    (root / "train/cat/0.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/cat/1.png").unlink()
    os.symlink("nowhere.png", root / "train/cat/1.png")
    (root / "train/cat/2.png").write_bytes(encoded(Image.new("1", (9000, 9000)), "PNG"))
    return {"train/cat/0.png": "broken", "train/cat/1.png": "can't be read", "train/cat/2.png": "too many pixels"}


def test_broken_pictures_are_refused_or_left_out_each_with_its_own_reason(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    reasons = broken_files(root)
    assert_raises_in_words(
        UserError,
        lambda: load(root),
        "3 of the pictures",
        *("train/cat/0.png: The picture is broken", "train/cat/1.png: The file can't be read"),
        *("train/cat/2.png: The picture has 9000x9000 pixels; at most 50000000", "data.broken=skip"),
    )
    for _ in range(2):  # also where the cache has been written before
        data = load(root, "data.broken=skip")
        assert {entry.name: entry.kind for entry in data.left_out} == reasons
        assert used(data) == len(TRAIN_TEST) - 3


def test_links_are_followed_and_loops_noticed(tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("train/cat", "test/cat", "test/dog"))
    os.symlink(write(tmp_path / "elsewhere", pictures("dogs")) / "dogs", root / "train" / "dog")
    os.symlink("0.png", root / "train" / "cat" / "linked.png")
    os.symlink("..", root / "train" / "cat" / "loop")
    data = load(root, "data.broken=skip")
    assert used(data) == 4 * COUNT + 1
    (entry,) = data.left_out
    assert (entry.name, entry.kind) == ("train/cat/loop", "can't be read")
    assert "a link to a folder that it lies in" in entry.detail


def as_zip(root: Path, target: Path, rename: Callable[[str], str] = str) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.writestr(rename(path.relative_to(root).as_posix()), path.read_bytes())
    return target


def test_a_zip_with_backslashes_holds_folders(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    data = load(as_zip(root, tmp_path / "a.zip", lambda name: name.replace("/", "\\")))
    assert (data.classes, used(data)) == (["cat", "dog"], len(TRAIN_TEST))


@pytest.mark.parametrize("flag", [True, False])
def test_umlauts_in_a_zip_are_read_with_and_without_the_flag_of_utf8(flag: bool, tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("train/Müll", "train/猫", "test/Müll", "test/猫"))
    path = as_zip(root, tmp_path / "a.zip")
    if not flag:  # as Info-ZIP writes
        content = bytearray(path.read_bytes())
        for header, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
            position = content.find(header)
            while position >= 0:
                content[position + offset] &= ~0x08 & 0xFF
                position = content.find(header, position + 1)
        path.write_bytes(content)
    assert load(path).classes == ["Müll", "猫"]


def test_a_name_that_looks_the_same_is_one_class(tmp_path: Path) -> None:
    """macOS writes ü as two characters; a file system here keeps both forms."""
    twice = [unicodedata.normalize(form, "Müll") for form in ("NFC", "NFD")]
    root = write(tmp_path / "set", pictures(f"train/{twice[0]}", f"test/{twice[1]}", "train/dog", "test/dog"))
    data = load(root)
    assert data.classes == ["Müll", "dog"]
    assert used(data) == 4 * COUNT


def test_classes_that_differ_by_their_case_alone_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(write(tmp_path / "set", pictures("Cat", "cat", count=40)))
    assert "classes that look the same: 'Cat', 'cat'" in caplog.text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (pictures("v1/train/cat", "v1/train/dog", "v2/train/cat"), ["several data sets: v1, v2"]),
        (["a.png", "b.png"], ["no folders of classes"]),
        (pictures("cat", count=40), ["only one class (cat)"]),
        ([*pictures("cat", count=40), "dog/1.png"], ["dog/1.png", "too small to split off", "data.test_fraction=0.2"]),
        (pictures("train/cat", "train/dog", "test/cat"), ["no picture of test/dog"]),
        (pictures("train/cat", "test/cat", "test/dog"), ["no picture of train/dog"]),
    ],
)
def test_what_can_not_be_understood_is_refused_in_words(names: list[str], words: list[str], tmp_path: Path) -> None:
    root = write(tmp_path / "set", names)
    assert_raises_in_words(UserError, lambda: load(root), *words)


def test_test_pictures_alone_are_a_test_set_and_not_enough_to_train(tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("test/cat", "test/dog"))
    assert_raises_in_words(UserError, lambda: load(root), "there are no training pictures")
    settings = compose(["data=folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache"])
    data = load_data(settings.data, 1, AS_SHOWN, for_training=False)
    assert sizes(data) == (0, 0, 24)
    # A class of that name among others is a class.
    other = load(write(tmp_path / "other", pictures("test/a", "cat", "dog", count=40)))
    assert other.classes == ["cat", "dog", "test"]


def test_a_class_folder_without_a_picture_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    (root / "train" / "owl").mkdir()
    assert_raises_in_words(UserError, lambda: load(root), "no pictures in train/owl/")
    (root / "train" / "owl" / "notes.txt").write_text("no picture")
    assert_raises_in_words(UserError, lambda: load(root), "no picture of")


def test_a_folder_of_text_files_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.txt").write_text("no picture")
    words = "no training pictures", "2 files are left out: cat/a.txt (not a picture)"
    assert_raises_in_words(UserError, lambda: load(tmp_path / "set"), *words)


@pytest.mark.parametrize(
    "name", ["a=b,c", "(x", "[x", "{x", "#x", "a&b", "a!b", "a'b", "a;b", "a b", "Müll", "$x", "${x}"]
)
def test_any_path_is_taken(name: str, tmp_path: Path) -> None:
    root = write(tmp_path / name, TRAIN_TEST)
    settings = compose(["data=folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache"])
    assert len(load_data(settings.data, 1, AS_SHOWN).test) == 2 * COUNT


def csv_of(root: Path, header: str, rows: Sequence[str], separator: str = ",", encoding: str = "utf-8") -> Path:
    path = root / "table.csv"
    path.write_text("\n".join([header, *rows]).replace(",", separator), encoding=encoding)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_of_paths_and_labels(separator: str, encoding: str, tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("files", count=80))
    rows = [f"files/{index}.png,{'01' if index % 2 else 'Müll'}" for index in range(80)]
    data = load(csv_of(root, "Path,Label", rows, separator, encoding))
    assert data.classes == ["01", "Müll"], "labels are texts"
    assert used(data) == 80


def test_a_csv_may_name_the_split(tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("files", count=40))
    rows = [
        f"{'train' if index < 30 else 'test'},files/{index}.png,{'cat' if index % 2 else 'dog'}" for index in range(40)
    ]
    data = load(csv_of(root, "split,file,class", rows))
    assert sizes(data) == (27, 3, 10)


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("image_id,kind", ["1,cat"], ["the columns image_id, kind", "one named path and one named label"]),
        ("path,label", ["a.png,"], ["line 2", "no label"]),
        ("path,label,split", ["a.png,cat,holdout"], ["line 2", "split=holdout"]),
        ("path,label", ["nowhere.png,cat"], ["nowhere.png: The file can't be read"]),
    ],
)
def test_a_csv_that_can_not_be_used_is_refused_with_its_line(
    header: str, rows: list[str], words: list[str], tmp_path: Path
) -> None:
    root = write(tmp_path / "set", ["a.png"])
    assert_raises_in_words(UserError, lambda: load(csv_of(root, header, rows)), *words)


def hugging_face(path: Path, labels: Sequence[int | None], names: Sequence[str] | None, first: int = 0) -> Path:
    """A file as `datasets` writes it: structs of bytes and path, and the names of the classes in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(first + index), "path": f"{index}.png"} for index in range(len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    if names:
        feature = {"names": list(names), "_type": "ClassLabel"}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": feature}}})})
    parquet.write_table(table, path)
    return path


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    labels = [0, 1] * 30
    single = hugging_face(tmp_path / "single" / "data.parquet", labels, ["cat", "dog"])
    data = load(single)
    assert (data.classes, used(data)) == (["cat", "dog"], 60)

    shards = tmp_path / "shards"
    hugging_face(shards / "data" / "train-00000-of-00002.parquet", labels, ["cat", "dog"], 100)
    hugging_face(shards / "data" / "train-00001-of-00002.parquet", labels, ["cat", "dog"], 200)
    hugging_face(shards / "data" / "validation-00000-of-00001.parquet", labels[:10], ["cat", "dog"], 300)
    hugging_face(shards / "data" / "test-00000-of-00001.parquet", [0, 1, 1, -1, None], ["cat", "dog"], 400)
    (shards / "README.md").write_text("# A data set")
    data = load(shards)
    assert (data.classes, sizes(data)) == (["cat", "dog"], (120, 10, 3))
    assert Counter(entry.kind for entry in data.left_out) == {"without a label": 2}


def test_parquet_without_names_has_the_labels_as_they_are(tmp_path: Path) -> None:
    data = load(hugging_face(tmp_path / "a" / "b.parquet", [3, 17] * 30, None))
    assert data.classes == ["17", "3"]


def test_parquet_without_labels_says_so(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [picture(1)], "kind": [0]}), tmp_path / "a.parquet")
    assert_raises_in_words(UserError, lambda: load(tmp_path / "a.parquet"), "no column label among image, kind")


# Damage.


def as_tar(root: Path, target: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    kind = target.suffix.removeprefix(".")
    mode: Any = f"w:{kind}" if kind in ("gz", "bz2", "xz") else "w"
    with tarfile.open(target, mode, format=form) as archive:
        archive.add(root, ".")
    return target


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("byte", [0, 100, 148, 156])  # of its name, mode, checksum and type
def test_one_bad_header_in_a_tar_archive_is_damage_not_its_end(byte: int, form: int, tmp_path: Path) -> None:
    path = as_tar(write(tmp_path / "set", TRAIN_TEST), tmp_path / "a.tar", form)
    content = bytearray(path.read_bytes())
    headers = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    content[headers[len(headers) // 2] + byte] ^= 0x08
    path.write_bytes(content)
    assert_raises_in_words(UserError, lambda: load(path), f"data.root={path}", "damaged")


@pytest.mark.parametrize("suffix", [".tar", ".gz", ".bz2", ".xz", ".zip"])
def test_an_archive_that_was_cut_is_refused_wherever_it_was(suffix: str, tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("train/cat", "train/dog", count=6))
    path = as_zip(root, tmp_path / "a.zip") if suffix == ".zip" else as_tar(root, tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    end = len(whole) if suffix != ".tar" else whole.rindex(b"IEND")  # what follows is padding
    settings = compose(["data=folder", f"data.root={path}", f"data.cache_dir={tmp_path}/cache", "data.broken=skip"])
    for cut in np.random.default_rng(0).integers(0, end, 40):
        path.write_bytes(whole[:cut])
        assert_raises_in_words(UserError, lambda: load_data(settings.data, 1, AS_SHOWN), f"data.root={path}")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_member_of_a_zip_is_named(method: int, tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in TRAIN_TEST:
            archive.writestr(name, (root / name).read_bytes())
        victim = archive.getinfo("train/cat/5.png")
        middle = victim.header_offset + 30 + len(victim.filename) + victim.compress_size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)
    assert_raises_in_words(
        UserError, lambda: load(path), "1 of the pictures", "train/cat/5.png: The file can't be read"
    )
    assert used(load(path, "data.broken=skip")) == len(TRAIN_TEST) - 1


def test_a_member_that_is_a_link_is_what_it_points_at(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    path = as_zip(root, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in (("train/cat/link.png", "../dog/0.png"), ("train/cat/nowhere.png", "nothing.png")):
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o120777 << 16
            archive.writestr(member, target)
    data = load(path, "data.broken=skip")
    assert used(data) == len(TRAIN_TEST) + 1
    assert [(entry.name, entry.kind) for entry in data.left_out] == [("train/cat/nowhere.png", "can't be read")]


def test_two_archives_in_one_are_noticed(tmp_path: Path) -> None:
    first = as_tar(write(tmp_path / "one", pictures("train/cat", "test/cat")), tmp_path / "a.tar")
    second = as_tar(write(tmp_path / "two", pictures("train/dog", "test/dog")), tmp_path / "b.tar")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert_raises_in_words(UserError, lambda: load(first), "two archives in one")


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    content = picture(500)
    with tarfile.open(as_tar(root, tmp_path / "a.tar"), "a", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        member = tarfile.TarInfo("train/cat/caf\xe9.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    os.makedirs(os.fsencode(root) + b"/train/f\xe9line")
    for split in ("train", "test"):
        folder = os.fsencode(root / split) + b"/f\xe9line"
        os.makedirs(folder, exist_ok=True)
        for index in range(COUNT):
            Path(os.fsdecode(folder + b"/%d.png" % index)).write_bytes(picture(600 + index))
    data = load(root)
    assert data.classes == ["cat", "dog", "f\\xe9line"]
    data = load(tmp_path / "a.tar")
    assert "train/cat/caf\\xe9.png" in {*data.train.names, *data.validation.names}
    assert used(data) == len(TRAIN_TEST) + 1


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "set", TRAIN_TEST + pictures("train/cat/locked"))
    real = os.scandir

    def forbidden(path: Path) -> object:  # root may enter everything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert_raises_in_words(
        UserError, lambda: load(root), "train/cat/locked: The file can't be read", "Permission denied"
    )


# The test set that is split off.


def split_names(data: ImageData) -> set[int]:
    return {int(value) for value in data.test.hashes}


def test_what_was_a_test_picture_stays_one(tmp_path: Path) -> None:
    """With another seed, other file names and more pictures, and copies fall on one side."""
    root = write(tmp_path / "set", pictures("cat", "dog", count=60))
    before = split_names(load(root))
    assert split_names(load(root, seed=7)) == before
    copies = root / "dog" / "copies"
    copies.mkdir()
    for index in range(60):
        (root / "cat" / f"more-{index}.png").write_bytes(picture(1000 + index))
        shutil.copy(root / "dog" / f"{index}.png", copies / f"copy-{index}.png")
        (root / "cat" / f"{index}.png").rename(root / "cat" / f"renamed-{index}.png")
    data = load(root)
    after = split_names(data)
    assert before < after
    training = {int(value) for value in (*data.train.hashes, *data.validation.hashes)}
    assert not training & after, "no picture is on both sides"


def test_the_fraction_is_that_of_each_class(tmp_path: Path) -> None:
    root = write(tmp_path / "set", pictures("cat", "dog", count=400))
    data = load(root, "data.test_fraction=0.3")
    shares = np.bincount(data.test.labels) / 400
    np.testing.assert_allclose(shares, 0.3, atol=0.08)


def test_renamed_files_are_called_by_their_new_names(tmp_path: Path) -> None:
    root = write(tmp_path / "set", TRAIN_TEST)
    load(root)
    (root / "test/cat/0.png").rename(root / "test/cat/new.png")
    assert "test/cat/new.png" in load(root).test.names
