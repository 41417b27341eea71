"""Predictions for many pictures as one Parquet file."""

import itertools
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from serving.batch.parts import Parts
from serving.model.cpus import MAX_BATCH, batches
from serving.model.errors import PictureError, UserError
from serving.model.pictures.files import File, Files
from serving.model.pictures.memory import MAX_PIXEL_BYTES, LargePicture, PixelMemory
from serving.model.predictor import Answer, Predictor

log = logging.getLogger(__name__)

PART_ROWS = 2048  # what a kill can cost

# A picture's name, and its probabilities or why it has none.
Row = tuple[str, np.ndarray | PictureError]


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
    parts that are there stay.
    """

    def __init__(
        self,
        source: Files,
        predictor: Predictor,
        target: Path,
        max_pixels: int,
        max_pixel_bytes: int = MAX_PIXEL_BYTES,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._source = source
        self._predictor = predictor
        self._target = target
        self._max_pixels = max_pixels
        self._max_batch = max_batch
        self._memory = PixelMemory(max_pixel_bytes)
        origin = {"source": source.fingerprint, "max_pixels": str(max_pixels), "model_version": predictor.version}
        origin |= {"answered_in": f"{predictor.precision} in {predictor.runtime}"}
        self._schema = pa.schema(
            [
                ("name", pa.string()),
                ("label", pa.string()),
                ("confidence", pa.float32()),
                *((f"probability_{label}", pa.float32()) for label in predictor.classes),
                ("model_version", pa.string()),
                ("error", pa.string()),
            ],
            metadata={**predictor.metadata.properties(), **origin},
        )

    def __enter__(self) -> "BatchPrediction":
        self._parts = Parts(self._target, self._schema)
        if self._parts.rows:
            log.info("resuming after %d of %d pictures", sum(self._parts.rows), len(self._source))
        self._threads = ThreadPoolExecutor(batches(), "model")
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._parts.close()

    @property
    def rows_left(self) -> int:
        """How many pictures `run` will classify."""
        return len(self._source) - sum(self._parts.rows)

    def run(self) -> Iterator[None]:
        """Does the work; yields once a picture."""
        answers = self._answers()
        while self.rows_left:
            rows = []
            for row in itertools.islice(answers, min(PART_ROWS, self.rows_left)):
                rows.append(row)
                yield
            self._parts.add(self._table(rows))
        self._parts.merge()

    def _answers(self) -> Iterator[Row]:
        """The rows that are left, in order; the threads are some batches ahead."""
        pictures = self._source.read_from(sum(self._parts.rows))
        running: deque[Future[list[Row]]] = deque()
        while batch := list(itertools.islice(pictures, self._max_batch)):
            running.append(self._threads.submit(self._classify, batch))
            if len(running) > 2 * batches():
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()

    def _classify(self, files: Sequence[File]) -> list[Row]:
        contents = [_read(file) for file in files]
        readable = [content for content in contents if isinstance(content, bytes)]
        answers = iter(self._predictor.classify(readable, self._max_pixels, all_cores=False))
        rows = []
        for file, content in zip(files, contents, strict=True):
            answer = content if isinstance(content, PictureError) else next(answers)
            if isinstance(content, bytes) and isinstance(answer, LargePicture):
                answer = self._classify_large(content, answer.pixels)
            if isinstance(content, bytes) and isinstance(answer, MemoryError):
                answer = self._classify_large(content, None)
            if isinstance(answer, MemoryError):
                raise UserError(
                    f"{file.name}: there is not enough memory for this picture, even alone ({answer})\n"
                    "Give the run more memory, or leave such pictures out with a smaller SERVING_MAX_PIXELS."
                ) from answer
            if not isinstance(answer, np.ndarray | PictureError):
                raise answer
            rows.append((file.name, answer))
        return rows

    def _classify_large(self, content: bytes, pixels: int | None) -> Answer:
        with self._memory.room(pixels):
            (answer,) = self._predictor.classify([content], self._max_pixels, all_cores=False, large=True)
        return answer

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        names, answers = zip(*rows, strict=True)
        errors = [answer.message if isinstance(answer, PictureError) else None for answer in answers]
        failed = np.array([error is not None for error in errors])
        nothing = np.zeros(len(self._predictor.classes), np.float32)
        probabilities = np.stack([nothing if isinstance(answer, PictureError) else answer for answer in answers])
        labels = np.array(self._predictor.classes, object)[probabilities.argmax(axis=1)]
        return pa.Table.from_arrays(
            [
                pa.array(names),
                pa.array(labels, mask=failed),
                *(pa.array(column, mask=failed) for column in (probabilities.max(axis=1), *probabilities.T)),
                pa.array([self._predictor.version] * len(rows)),
                pa.array(errors, pa.string()),
            ],
            schema=self._schema,
        )


def _read(file: File) -> bytes | PictureError:
    try:
        return file.read()
    except PictureError as error:
        return error
    except MemoryError as error:
        raise UserError(f"{file.name}: there is not enough memory to read it\nGive the run more memory.") from error


def summary(target: Path) -> list[dict[str, Any]]:
    """How many pictures got which label, and how sure the model was: a row a class, then all, then those without."""
    table = parquet.read_table(target, columns=["label", "confidence"])
    labels = table["label"].to_numpy()
    confidences = table["confidence"].to_numpy()  # NaN without an answer
    answered = ~np.isnan(confidences)

    def row(title: str, chosen: np.ndarray) -> dict[str, Any]:
        sure = confidences[chosen & answered]
        return {
            "class": title,
            "pictures": int(chosen.sum()),
            "mean confidence": f"{sure.mean():.1%}" if sure.size else "",
            "below 50%": int((sure < 0.5).sum()),
            "50% to 90%": int(((sure >= 0.5) & (sure < 0.9)).sum()),
            "from 90%": int((sure >= 0.9).sum()),
        }

    classes = json.loads(table.schema.metadata[b"classes"])
    rows = [row(label, labels == label) for label in classes]
    return [*rows, row("(all)", answered), row("(no answer)", ~answered)]
