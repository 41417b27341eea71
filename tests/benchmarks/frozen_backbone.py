"""A frozen backbone in one pass against the same head on a backbone that answers in every epoch.

python -m tests.benchmarks.frozen_backbone PICTURES [LIMIT]

PICTURES is a folder or an archive of real pictures, of which LIMIT are trained on; both ways train the head for the
reference's five epochs on the same pictures. The one pass augments them once, the slow way in every epoch anew.
"""

import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from training.config import compose
from training.data.augmentation import AlbumentationsDataset, build_transform
from training.data.split import load_data
from training.loop.trainer import Trainer
from training.model.classifier import build_model
from training.quality.evaluation import evaluate, predict, torch_classify


def main(pictures: str, limit: str) -> None:
    table = Table("", "seconds", "test accuracy", title=f"efficientnet_lite0 at 96x96, {limit} pictures, 5 epochs")
    rows = {"one pass": "trainer.freeze_backbone=true", "every epoch": "trainer.frozen_stages=99"}
    seconds = {}
    for name, override in rows.items():
        settings = compose(
            [
                *("data=folder", f"data.root={pictures}", f"data.train_limit={limit}", "data.test_limit=4000"),
                *("data.validation_limit=500", "trainer.lr=1e-3", override),
            ]
        )
        data = load_data(settings.data, settings.seed, settings.model.decoding)
        torch.manual_seed(settings.seed)
        model = build_model(settings.model, len(data.classes))
        transform = build_transform(settings.transforms, data.train.common_size(), settings.model.image_size)
        start = time.perf_counter()
        train = AlbumentationsDataset(data.train, transform)
        trainer = Trainer(settings.trainer, model, train, data.validation, settings.seed)
        list(trainer.fit())
        seconds[name] = time.perf_counter() - start
        evaluation = evaluate(predict(torch_classify(model), data.test, "evaluating", 32), data.test, data.classes)
        table.add_row(name, f"{seconds[name]:.0f}", f"{evaluation.metrics['accuracy']:.2%}")
    Console().print(table)
    print(f"one pass takes 1/{seconds['every epoch'] / seconds['one pass']:.1f} of the time")


if __name__ == "__main__":
    main(sys.argv[1], *(sys.argv[2:] or ["10000"]))
