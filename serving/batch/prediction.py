"""Predictions for many pictures as one Parquet file."""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from serving.batch.cluster import Cluster
from serving.batch.parts import Parts
from serving.batch.scoring import Limits, Scorer
from serving.batch.sources import Source
from serving.batch.storage import located
from serving.model.cpus import MAX_BATCH
from serving.model.pictures.memory import MAX_PIXEL_BYTES
from serving.model.predictor import Predictor

log = logging.getLogger(__name__)

PART_ROWS = 2048  # what a kill can cost


class BatchPrediction:
    """Classifies the pictures of a source into `target`, beginning where an earlier run of the same was cut off.

    A row has the columns name, label, confidence, one `probability_<class>` a class (float32, 0 to 1), model_version,
    and error: null, or why the picture has no answer, and then label, confidence and probabilities are null. Rows are
    in the source's order. The file's metadata holds all that the model says of itself.

        with BatchPrediction(source, predictor, target, max_pixels) as prediction:
            for _ in prediction.run():
                ...

    The model runs for `max_batch` pictures at a time. Large ones together occupy `max_pixel_bytes`, or one does. Where
    memory runs out, a picture is tried again alone; `run` raises UserError where that is too much as well, and the
    parts that are there stay. With a `cluster` its nodes do the work, each with a copy of the predictor.
    """

    def __init__(
        self,
        source: Source,
        predictor: Predictor,
        target: Path | str,
        max_pixels: int,
        max_pixel_bytes: int = MAX_PIXEL_BYTES,
        max_batch: int = MAX_BATCH,
        cluster: Cluster | None = None,
    ) -> None:
        self._source = source
        self._predictor = predictor
        self._target = str(target)
        self._limits = Limits(max_pixels, max_pixel_bytes, max_batch)
        self._cluster = cluster
        full, rest = divmod(len(source), PART_ROWS)
        self._sizes = [PART_ROWS] * full + [rest] * bool(rest)

    def __enter__(self) -> "BatchPrediction":
        if self._cluster:
            self._cluster.prepare(self._source, self._predictor, self._limits)
        self._scorer = Scorer(self._predictor, self._limits)
        schema = self._scorer.schema
        schema = schema.with_metadata({**schema.metadata, "source": self._source.fingerprint})
        self._parts = Parts(self._target, schema, self._sizes)
        if left := len(self._source) - self.rows_left:
            log.info("resuming after %d of %d pictures", left, len(self._source))
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()
        self._parts.close()

    @property
    def rows_left(self) -> int:
        """How many pictures `run` will classify."""
        return sum(self._sizes[number] for number in self._parts.missing)

    def run(self) -> Iterator[None]:
        """Does the work; yields once a picture."""
        yield from self._by_cluster(self._cluster) if self._cluster else self._here()
        self._parts.merge()

    def _here(self) -> Iterator[None]:
        missing = [*self._parts.missing]
        answers = self._scorer.rows(self._source.read(*self._rows(number)) for number in missing)
        for number in missing:
            rows = []
            for row in islice(answers, self._sizes[number]):
                rows.append(row)
                yield
            self._parts.add(number, self._scorer.table(rows))

    def _by_cluster(self, cluster: Cluster) -> Iterator[None]:
        portions = ((number, self._source.portion(*self._rows(number))) for number in [*self._parts.missing])
        for number, table in cluster.score(portions):
            self._parts.add(number, table)
            yield from [None] * self._sizes[number]

    def _rows(self, number: int) -> tuple[int, int]:
        """The first row of a part, and how many it has."""
        return number * PART_ROWS, self._sizes[number]


def summary(target: Path | str) -> list[dict[str, Any]]:
    """How many pictures got which label, and how sure the model was: a row a class, then all, then those without."""
    storage, path = located(str(target))
    with storage.open(path) as content, parquet.ParquetFile(content) as file:
        classes = json.loads(file.schema_arrow.metadata[b"classes"])
        found = np.zeros((len(classes) + 1, 5))  # pictures, their confidences, and how many are in each band
        for batch in file.iter_batches(columns=["label", "confidence"]):
            labels = compute.index_in(batch["label"], pa.array(classes)).fill_null(len(classes)).to_numpy()
            confidences = np.nan_to_num(batch["confidence"].to_numpy(zero_copy_only=False))  # NaN without an answer
            np.add.at(found, (labels, 0), 1)
            np.add.at(found, (labels, 1), confidences)
            np.add.at(found, (labels, 2 + np.digitize(confidences, [0.5, 0.9])), 1)

    def row(title: str, counts: np.ndarray) -> dict[str, Any]:
        pictures, confidence, *bands = counts
        return {
            "class": title,
            "pictures": int(pictures),
            "mean confidence": f"{confidence / pictures:.1%}" if confidence else "",
            **dict(zip(("below 50%", "50% to 90%", "from 90%"), map(int, bands), strict=True)),
        }

    answered, without = found[:-1], found[-1] * [1, 0, 0, 0, 0]
    rows = [row(label, counts) for label, counts in zip(classes, answered, strict=True)]
    return [*rows, row("(all)", answered.sum(axis=0)), row("(no answer)", without)]
