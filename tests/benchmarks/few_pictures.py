"""What `experiment=quick` makes of few pictures, beside one epoch of fine-tuning as with many.

python -m tests.benchmarks.few_pictures cifar10-images.zip [PICTURES_A_CLASS ...]

Three draws of each number, 2,000 test pictures.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.helpers.draws import draw

DRAWS = 3
MANY = ["small_data=[]", "trainer.min_steps=null"]


def main(archive: Path, counts: list[int]) -> None:
    table = Table("pictures a class", "quick", "mean", "time", "as with many", "mean", "time")
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"STATE_DIR": directory, "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db"}
        from training import tracking
        from training.config import compose
        from training.train import train

        for count in counts:
            cells = [str(count)]
            roots = [draw(archive, Path(directory) / f"{count}-{seed}", count, 200, seed) for seed in range(DRAWS)]
            for overrides in ([], MANY):
                accuracies, start = [], time.perf_counter()
                for root in roots:
                    run_id = train(compose(["data=folder", f"data.root={root}", "experiment=quick", *overrides]))
                    accuracies.append(tracking.connect().get_run(run_id).data.metrics["test_accuracy"])
                seconds = (time.perf_counter() - start) / DRAWS
                shares = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
                cells += [shares, f"{statistics.mean(accuracies):.1%}", f"{seconds:.0f} s"]
            table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [int(word) for word in sys.argv[2:]] or [10, 60, 600])
