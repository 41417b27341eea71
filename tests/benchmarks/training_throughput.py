"""Training pictures a second: the Trainer against a plain loop, and its input pipeline by itself, in one run.

python -m tests.benchmarks.training_throughput [IMAGE_SIZE] [PICTURES]

The plain loop is what one would write first: float32, Albumentations at the model's image size for each picture, two
DataLoader workers. All train efficientnet_lite0 on pictures of CIFAR-10's size, on a GPU where there is one, and take
turns; the medians are printed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import DataLoader

from training.config import compose
from training.data.augmentation import AlbumentationsDataset, build_transform
from training.data.pictures import Pictures
from training.loop.trainer import Trainer
from training.model.classifier import build_model

BATCH_SIZE = 64
ROUNDS = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pictures(count: int) -> Pictures:
    """Random pictures of 32x32: what they show does not change how fast they are trained on."""
    random = np.random.default_rng(0)
    return Pictures(
        pixels=random.integers(0, 256, count * 32 * 32 * 3, np.uint8),
        offsets=np.arange(count) * 32 * 32 * 3,
        sizes=np.full((count, 2), 32, np.int32),
        labels=random.integers(0, 10, count),
        names=np.arange(count).astype(str),
        hashes=np.arange(count).astype(np.uint64),
    )


def per_second(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def plain_epochs(size: int, data: Pictures) -> Iterator[float]:
    """Trains the plain loop, an epoch at a time; yields the pictures a second."""
    settings = compose(["transforms=reference", f"model.image_size={size}"])
    model = build_model(settings.model, 10).to(DEVICE, memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dataset = AlbumentationsDataset(data, build_transform(settings.transforms, 32, size))
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)

    def epoch() -> None:
        for images, labels in loader:
            F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    model.train()
    while True:
        yield per_second(len(loader) * BATCH_SIZE, epoch)


_plain: Iterator[float] | None = None


def next_plain_epoch(size: int, count: int) -> float:
    """In a process of its own, where the Trainer has not changed how memory is handed out."""
    global _plain
    _plain = _plain or plain_epochs(size, pictures(count))
    return next(_plain)


def our_epochs(size: int, data: Pictures, *overrides: str) -> Iterator[float]:
    """The same with the Trainer."""
    common = [f"model.image_size={size}", f"trainer.batch_size={BATCH_SIZE}", "trainer.optimizer=adamw"]
    settings = compose([*common, f"trainer.epochs={ROUNDS}", *overrides])
    dataset = AlbumentationsDataset(data, build_transform(settings.transforms, 32, size))
    trainer = Trainer(settings.trainer, build_model(settings.model, 10), dataset, data.subset(np.arange(64)), seed=0)
    for epoch in trainer.fit():
        yield epoch.metrics["images_per_second"]


def input_epochs(size: int, data: Pictures, transforms: str) -> Iterator[float]:
    """What the Trainer's input pipeline delivers where nothing is trained."""
    settings = compose([f"transforms={transforms}"])
    loader = DataLoader(AlbumentationsDataset(data, build_transform(settings.transforms, 32, size)), BATCH_SIZE)
    while True:
        yield per_second(len(data), lambda: list(loader))


def main(size: int, count: int) -> None:
    data = pictures(count)
    elsewhere = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    ways: dict[str, Callable[[], float]] = {
        "plain loop: float32, reference transforms, 2 workers": lambda: elsewhere.submit(
            next_plain_epoch, size, count
        ).result(),
        "Trainer": our_epochs(size, data).__next__,
        "Trainer, trainer.frozen_stages=3": our_epochs(size, data, "trainer.frozen_stages=3").__next__,
        "input alone, transforms=native": input_epochs(size, data, "native").__next__,
        "input alone, transforms=reference": input_epochs(size, data, "reference").__next__,
    }
    # The first round chooses kernels and allocates memory.
    rounds = [[way() for way in ways.values()] for _ in range(ROUNDS)][1:]
    rates = np.median(rounds, axis=0)
    table = Table("", "pictures a second", "ratio", title=f"efficientnet_lite0 at {size}x{size}")
    for name, rate in zip(ways, rates, strict=True):
        table.add_row(name, f"{rate:.0f}", f"{rate / rates[0]:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["96", "640"][len(sys.argv) - 1 :])))
