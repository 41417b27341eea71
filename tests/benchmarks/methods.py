"""What each way to train better gains on CIFAR-10, with the noise of the seeds beside it.

python -m tests.benchmarks.methods IMAGES [METHOD ...]

All train efficientnet_lite0 by `experiment=best` at 96 px on 10,000 pictures, once for each seed, and are compared on
4,000 validation pictures. Results are kept in state/methods.json, so that what was cut off goes on.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import sem, t

from training.config import compose
from training.train import build_trainer, read

SEEDS = (1, 2, 3)
RESULTS = Path("state/methods.json")
BASE = [
    "experiment=best",
    "data=folder",
    "data.validation_fraction=0.1",
    "data.train_limit=10000",
    "data.validation_limit=4000",
    "model=efficientnet_lite0",
    "model.image_size=96",
    "model.flip_average=false",
    "trainer.epochs=5",
]
AS_IT_IS = "as it is"
METHODS = {
    AS_IT_IS: [],
    "mixup": ["trainer.mixup=0.2"],
    "cutmix": ["trainer.cutmix=1.0"],
    "both": ["trainer.mixup=0.2", "trainer.cutmix=1.0"],
    "ema": ["trainer.ema=0.99"],
    "layer_decay": ["trainer.layer_decay=0.85"],
    "drop_path": ["trainer.drop_path=0.1"],
    "randaugment": ["transforms=randaugment"],
    "flip_average": ["model.flip_average=true"],
    "trained_at_80": ["trainer.image_size=80"],
    "trained_at_64": ["trainer.image_size=64"],
}


def measure(images: str, method: str, seed: int) -> dict[str, Any]:
    """Validation accuracy in [0, 1] of the last epoch and of each, its loss, and minutes of training."""
    settings, data = read(compose([*BASE, f"data.root={images}", f"seed={seed}", *METHODS[method]]))
    start = time.perf_counter()
    epochs = [epoch.metrics for epoch in build_trainer(settings, data, data.train, data.validation).fit()]
    return {
        "accuracy": epochs[-1]["validation_accuracy"],
        "accuracies": [epoch["validation_accuracy"] for epoch in epochs],
        "loss": epochs[-1]["train_loss"],
        "minutes": (time.perf_counter() - start) / 60,
    }


def table(results: dict[str, dict[str, Any]]) -> Table:
    """A row a method: its accuracy, and what it gains over none with the error of that, seed by seed."""
    shown = Table("", "validation accuracy", "gain in points", "minutes", title="efficientnet_lite0 at 96x96")
    for method in METHODS:
        found = {seed: results[f"{method} {seed}"] for seed in SEEDS if f"{method} {seed}" in results}
        if not found:
            continue
        accuracy = 100 * np.array([each["accuracy"] for each in found.values()])
        pairs = [seed for seed in found if f"{AS_IT_IS} {seed}" in results]
        gains = 100 * np.array([found[seed]["accuracy"] - results[f"{AS_IT_IS} {seed}"]["accuracy"] for seed in pairs])
        # Of so few seeds, the error that 95 in 100 such means lie within is that of Student's distribution.
        error = sem(gains) * t.ppf(0.975, len(gains) - 1) if len(gains) > 1 else np.nan
        noise = ", which is noise" if len(gains) and not abs(gains.mean()) > error else ""
        gain = f"{gains.mean():+.2f} ± {error:.2f}{noise}" if method != AS_IT_IS and len(gains) else ""
        minutes = np.mean([each["minutes"] for each in found.values()])
        shown.add_row(f"{method} ({len(found)})", f"{accuracy.mean():.2f} %", gain, f"{minutes:.1f}")
    return shown


def main(images: str, *methods: str) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in SEEDS:
        for method in methods or METHODS:
            if f"{method} {seed}" not in results:
                results[f"{method} {seed}"] = measure(images, method, seed)
                RESULTS.write_text(json.dumps(results, indent=1))
                Console().print(table(results))
    Console().print(table(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
