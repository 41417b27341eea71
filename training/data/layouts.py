"""Which file is a picture of which class: what the folders, tables and archives of people mean."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from serving.model.errors import UserError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
# What people call them, in any case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}


class Place(NamedTuple):
    split: str
    label: str


class Layout(NamedTuple):
    """What folders mean.

    Attributes:
        places: of the files by name; a text is the reason why one is left out.
        classes: the places of all class folders, also of empty ones.
    """

    places: dict[str, Place | str]
    classes: set[Place]


def layout_of(names: Iterable[str], folders: Iterable[str], root: str) -> Layout:
    """Understands `<split>/<class>/...` and `<class>/...`, at any depth, with folders of any kind inside of a class.

    Raises UserError where there are no classes, or several data sets.
    """
    files = {name: tuple(name.split("/")) for name in names}
    tops = {parts[:index] for parts in files.values() for index in _split_at(parts)}
    tops = {top for top in tops if _has_split(files.values(), top, TRAIN) or _is_test_set(files.values(), top)}
    if len(tops) > 1:
        found = ", ".join(sorted("/".join(top) or "." for top in tops))
        raise UserError(f"data.root={root} holds several data sets: {found}; give one of them")
    if tops:
        top = tops.pop()
        places = {name: _in_split(parts, top) for name, parts in files.items()}
        known = [_in_split((*folder.split("/"), ""), top) for folder in folders]
    else:
        top = _common_folder(files.values())
        places = {name: _in_class(parts, top) for name, parts in files.items()}
        known = [_in_class((*folder.split("/"), ""), top) for folder in folders]
    classes = {place for place in (*places.values(), *known) if isinstance(place, Place)}
    if not classes:
        raise UserError(f"data.root={root}: there are no folders of classes, such as train/<class>/ or <class>/")
    return Layout(places, classes)


def class_name(text: str) -> str:
    """One form of what looks the same: macOS writes some letters as two characters."""
    return unicodedata.normalize("NFC", text)


def alike(labels: Iterable[str]) -> list[str]:
    """Those that people can hardly tell from another one."""
    labels = sorted(labels)
    counts = Counter(label.strip().casefold() for label in labels)
    return [label for label in labels if counts[label.strip().casefold()] > 1]


def _split_at(parts: tuple[str, ...]) -> list[int]:
    """The index of the outermost folder that is named like a split and has folders in it."""
    return [index for index, part in enumerate(parts[:-2]) if part.casefold() in SPLIT_NAMES][:1]


def _has_split(files: Iterable[tuple[str, ...]], top: tuple[str, ...], split: str) -> bool:
    return any(_is_split(parts, top, split) for parts in files)


def _is_test_set(files: Iterable[tuple[str, ...]], top: tuple[str, ...]) -> bool:
    """Whether there are test pictures alone, rather than a class of that name among others."""
    below = [parts for parts in files if parts[: len(top)] == top and len(parts) > len(top) + 1]
    return all(_is_split(parts, top, TEST) for parts in below)


def _is_split(parts: tuple[str, ...], top: tuple[str, ...], split: str) -> bool:
    below = parts[len(top) :]
    return parts[: len(top)] == top and len(below) > 2 and SPLIT_NAMES.get(below[0].casefold()) == split


def _in_split(parts: tuple[str, ...], top: tuple[str, ...]) -> Place | str:
    split, *below = parts[len(top) :] if parts[: len(top)] == top else ("",)
    if split.casefold() not in SPLIT_NAMES:
        return "outside of train/, validation/ and test/"
    if len(below) < 2:
        return "in no class's folder"
    return Place(SPLIT_NAMES[split.casefold()], class_name(below[0]))


def _in_class(parts: tuple[str, ...], top: tuple[str, ...]) -> Place | str:
    label, *below = parts[len(top) :] if parts[: len(top)] == top else ("",)
    return Place(TRAIN, class_name(label)) if below else "in no class's folder"


def _common_folder(files: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The folder that the classes' folders lie in, below folders that have but one folder in them."""
    folders = {parts[:-1] for parts in files}
    top: tuple[str, ...] = ()
    while True:
        inside = {folder[: len(top) + 1] for folder in folders if len(folder) > len(top) and folder[: len(top)] == top}
        deeper = {folder for folder in folders if len(folder) > len(top) + 1}
        if len(inside) != 1 or not deeper:
            return top
        (top,) = inside
