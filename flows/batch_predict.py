"""Scores the pictures of a folder, an archive or a Parquet file with a registered model, into a Parquet file.

python -m flows.batch_predict source=pictures.zip target=out.parquet
python -m flows.batch_predict source=pictures.zip target=out.parquet model=models:/cifar10-classifier/3
"""

import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from rich.console import Console
from rich.table import Table

from flows.failures import RETRIES, start_errors_in_words
from serving.batch import BatchPrediction, summary
from serving.champion import fetch
from serving.settings import load_settings
from serving.sources import open_source
from training.errors import UserError, exit_on_user_error
from training.progress import progress

USAGE = "python -m flows.batch_predict source=PATH target=FILE.parquet [model=models:/NAME@ALIAS]"


# Another try goes on where the last one ended.
@task(task_run_name="predict {source}", **RETRIES)
def predict(source: Path, target: Path, model: str) -> None:
    """Writes `target`."""
    if source.resolve() == target.resolve():
        raise UserError(f"target={target} is the source; give another file")
    with start_errors_in_words():
        settings = load_settings(model=model)
        pictures = open_source(source)
        predictor = fetch(settings)
        with BatchPrediction(pictures, predictor, target, settings.max_pixels) as prediction:
            for _ in progress(prediction.run(), "pictures", prediction.rows_left):
                pass


@flow(name="batch-predict")
def batch_predict(
    source: Path, target: Path, model: str = "models:/cifar10-classifier@champion"
) -> list[dict[str, Any]]:
    """Classifies every picture of `source` and writes a row for each to `target`; goes on where it was cut off.

    Args:
        source: a folder, a zip or tar archive, or a Parquet file with a column of image files' bytes.
        target: the Parquet file to write; one that is there is replaced when the new one is whole.
        model: a registry URI, or the path of an ONNX file.

    Returns:
        The summary: a row a class.
    """
    predict(source, target, model)
    rows = summary(target)
    create_table_artifact(rows, key="predictions", description=f"{source} in {target}, by class and confidence")
    get_run_logger().info("%s is written", target)
    return rows


def parse(words: list[str]) -> dict[str, Any]:
    """`source=a target=b` as a dictionary."""
    arguments = dict(word.split("=", 1) for word in words if "=" in word)
    known = {"source", "target"} <= set(arguments) <= {"source", "target", "model"}
    if not known or not all(arguments.values()) or len(arguments) != len(words):
        raise UserError(f"{' '.join(words) or 'nothing'} was given; the command is\n{USAGE}")
    return arguments


if __name__ == "__main__":
    with exit_on_user_error():
        rows = batch_predict(**parse(sys.argv[1:]))
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
