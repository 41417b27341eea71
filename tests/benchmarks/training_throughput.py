"""Training pictures a second: the Trainer against a plain loop, and its input pipeline by itself, in one run.

python -m tests.benchmarks.training_throughput [IMAGE_SIZE] [PICTURES]

The plain loop is what one would write first: float32, Albumentations at the model's image size for each picture, two
DataLoader workers. Both train all of efficientnet_lite0 on pictures of CIFAR-10's size.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import DataLoader

from training.config import compose_config
from training.data import AlbumentationsDataset, Pictures, build_transform
from training.models import build_model
from training.trainer import Trainer

WARM_UP = 256


def pictures(count: int) -> Pictures:
    """Random pictures of 32x32: what they show does not change how fast they are trained on."""
    random = np.random.default_rng(0)
    return Pictures(
        pixels=random.integers(0, 256, count * 32 * 32 * 3, np.uint8),
        offsets=np.arange(count) * 32 * 32 * 3,
        sizes=np.full((count, 2), 32, np.int32),
        labels=random.integers(0, 10, count),
        names=np.arange(count).astype(str),
    )


def per_second(count: int, work: Callable[[Pictures], None]) -> float:
    work(pictures(WARM_UP))  # the first batches choose kernels and allocate memory
    data = pictures(count)
    start = time.perf_counter()
    work(data)
    return count / (time.perf_counter() - start)


def plain_loop(size: int) -> Callable[[Pictures], None]:
    config = compose_config(["transforms=reference", f"model.image_size={size}"])
    model = build_model(config.model, 10).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def work(data: Pictures) -> None:
        dataset = AlbumentationsDataset(data, build_transform(config.transforms, 32, size))
        model.train()
        for images, labels in DataLoader(dataset, 64, shuffle=True, num_workers=2, drop_last=True):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return work


def our_loop(size: int, *overrides: str) -> Callable[[Pictures], None]:
    config = compose_config(
        [f"model.image_size={size}", "trainer.optimizer=adamw", "trainer.epochs=1", *overrides],
    )
    model = build_model(config.model, 10)

    def work(data: Pictures) -> None:
        dataset = AlbumentationsDataset(data, build_transform(config.transforms, 32, size))
        list(Trainer(config.trainer, model, dataset, data.subset(np.arange(64)), seed=0).fit())

    return work


def input_pipeline(size: int, transforms: str) -> Callable[[Pictures], None]:
    config = compose_config([f"transforms={transforms}"])

    def work(data: Pictures) -> None:
        for _ in DataLoader(AlbumentationsDataset(data, build_transform(config.transforms, 32, size)), 64):
            pass

    return work


def main(size: int, count: int) -> None:
    rows = {
        "plain loop (float32, reference transforms, 2 workers)": plain_loop(size),
        "Trainer": our_loop(size),
        "Trainer, trainer.frozen_stages=3": our_loop(size, "trainer.frozen_stages=3"),
        "input pipeline alone, transforms=native": input_pipeline(size, "native"),
        "input pipeline alone, transforms=reference": input_pipeline(size, "reference"),
    }
    table = Table("", "pictures a second", "ratio", title=f"efficientnet_lite0 at {size}x{size}")
    base = None
    for name, work in rows.items():
        rate = per_second(count, work)
        base = base or rate
        table.add_row(name, f"{rate:.0f}", f"{rate / base:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["96", "1920"][len(sys.argv) - 1 :])))
