"""Few of the real CIFAR-10 pictures, as somebody might bring them."""

import random
import zipfile
from collections import defaultdict
from pathlib import Path, PurePath


def draw(archive: Path, root: Path, train: int, test: int, seed: int) -> Path:
    """Writes so many pictures of each class to train/ and test/ under `root`, from a zip archive of such folders."""
    with zipfile.ZipFile(archive) as file:
        names = defaultdict(list)
        for name in sorted(file.namelist()):
            *_, split, label, picture = ("", "", *PurePath(name).parts)
            if split in ("train", "test") and not name.endswith("/"):
                names[split, label].append((name, picture))
        chooser = random.Random(seed)
        for (split, label), candidates in sorted(names.items()):
            folder = root / split / label
            folder.mkdir(parents=True)
            for name, picture in chooser.sample(candidates, {"train": train, "test": test}[split]):
                (folder / picture).write_bytes(file.read(name))
    return root
