"""Scores the pictures of a folder, an archive or a Parquet file with a registered model, into a Parquet file."""

import os
from contextlib import nullcontext
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact

from flows.arguments import print_table, run_command
from flows.failures import RETRIES, cancellable
from serving.batch.cluster import Cluster
from serving.batch.prediction import BatchPrediction, summary
from serving.batch.sources import open_pictures
from serving.model.errors import NoPictures, UserError
from serving.model.registry import champion_uri
from serving.model.store import ModelStore
from serving.settings import load_settings
from training.progress import progress

Engine = Literal["local", "ray"]
EXAMPLE = "python -m flows.batch_predict source=pictures.zip target=out.parquet model=models:/image-classifier/3"


# A retry goes on where the last attempt ended.
@task(task_run_name="predict {source}", **RETRIES)
def predict(source: str, target: str, model: str, may_be_empty: bool, engine: Engine) -> bool:
    """Writes `target`; returns whether there was a picture."""
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError(f"target={target} is the source; give another file")
    settings = load_settings(model=model or champion_uri())
    store = ModelStore(settings.model, settings.state_dir, settings.providers, settings.precision)
    limits = settings.max_pixels, settings.max_pixel_bytes, settings.max_batch
    with Cluster() if engine == "ray" else nullcontext() as cluster:
        try:
            pictures = open_pictures(source, "source")
        except NoPictures:
            if may_be_empty:
                return False
            raise
        predictor = store.load(cluster.take) if cluster else store.load()
        with BatchPrediction(pictures, predictor, target, *limits, cluster) as prediction:
            for _ in progress(prediction.run(), "pictures", prediction.rows_left):
                pass
    return True


@flow(name="batch-predict")
@cancellable
def batch_predict(
    source: str, target: str, model: str = "", may_be_empty: bool = False, engine: Engine = "local"
) -> list[dict[str, Any]]:
    """Classifies every picture of `source` and writes a row for each to `target`; goes on where it was cut off.

    Args:
        source: a folder, a zip or tar archive, a Parquet file with a column of image files' bytes, or a folder of such;
            folders and Parquet files may be at an address: `s3://BUCKET/FOLDER`.
        target: the Parquet file to write; one that is there is replaced when the new one is whole.
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or an ONNX file; empty: the champion of MODEL_NAME.
        may_be_empty: whether a source that is not there, or holds no file, is no mistake; nothing is written then.
        engine: `local`, or `ray`: the nodes of the Ray cluster at RAY_ADDRESS; without it this machine's CPUs.

    Returns:
        The summary: a row a class; none without pictures.
    """
    if not predict(source, target, model, may_be_empty, engine):
        get_run_logger().info("there are no pictures in %s yet; nothing is written", source)
        return []
    rows = summary(target)
    create_table_artifact(rows, key="predictions", description=f"{source} in {target}, by class and confidence")
    get_run_logger().info("%s is written", target)
    return rows


if __name__ == "__main__":
    print_table(run_command(batch_predict, EXAMPLE))
