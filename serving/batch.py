"""Predictions for many pictures as one Parquet file, in parts that survive a kill."""

import fcntl
import itertools
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from serving.errors import Refusal, StartError
from serving.predictor import RUNS, Predictor
from serving.sources import Picture, Source

log = logging.getLogger(__name__)

PART_ROWS = 2048  # what a kill can cost
BATCH = 8  # larger ones leave a core's cache and are slower
AHEAD = 2 * RUNS  # batches behind the one that is waited for


class BatchPrediction:
    """Classifies the pictures of a source into `target`, beginning where an earlier run of the same was cut off.

    Whole parts are kept in `<target>.parts/` until all of them are there. A row has the columns name, label,
    confidence, one `probability_<class>` a class (float32, 0 to 1), model_version, and error: null, or why the picture
    has no answer, and then label, confidence and probabilities are null. Rows are in the source's order. The file's
    metadata holds all that the model says of itself.

        with BatchPrediction(source, predictor, target, max_pixels) as prediction:
            for _ in prediction.run():
                ...

    Attributes:
        rows_left: how many pictures `run` will classify.

    Raises:
        StartError: `target` can't be written, or another run is writing it.
    """

    def __init__(self, source: Source, predictor: Predictor, target: Path, max_pixels: int) -> None:
        self.source = source
        self.predictor = predictor
        self.target = target
        self.max_pixels = max_pixels
        self.parts = target.with_name(f"{target.name}.parts")
        origin = {"source": source.fingerprint, "max_pixels": str(max_pixels), "model_version": predictor.version}
        self.schema = pa.schema(
            [
                ("name", pa.string()),
                ("label", pa.string()),
                ("confidence", pa.float32()),
                *((f"probability_{label}", pa.float32()) for label in predictor.classes),
                ("model_version", pa.string()),
                ("error", pa.string()),
            ],
            metadata={**predictor.metadata, **origin},
        )

    def __enter__(self) -> "BatchPrediction":
        if self.target.is_dir():
            raise StartError(f"target={self.target} is a folder; give the name of a file, such as out.parquet")
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.parts, os.O_RDONLY)
        except OSError as error:
            raise StartError(f"target={self.target} can't be written: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StartError(f"target={self.target} is being written by another run; wait for it") from None
        self._done = self._whole_parts()
        self._threads = ThreadPoolExecutor(RUNS, "model")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        os.close(self._lock)

    @property
    def rows_left(self) -> int:
        return self.source.count - sum(self._done)

    def run(self) -> Iterator[None]:
        """Does the work; yields once a picture."""
        answers = self._answers()
        while self.rows_left:
            rows = []
            for row in itertools.islice(answers, min(PART_ROWS, self.rows_left)):
                rows.append(row)
                yield
            _write_whole(self._part(len(self._done)), partial(parquet.write_table, self._table(rows)))
            self._done.append(len(rows))
        _write_whole(self.target, self._merge)
        shutil.rmtree(self.parts)

    def _answers(self) -> Iterator[tuple[str, np.ndarray | Refusal]]:
        """The rows that are left, in order; the threads are some batches ahead."""
        pictures = self.source.read_from(sum(self._done))
        running: deque[Future[list[tuple[str, np.ndarray | Refusal]]]] = deque()
        while batch := list(itertools.islice(pictures, BATCH)):
            running.append(self._threads.submit(_classify, self.predictor, batch, self.max_pixels))
            if len(running) > AHEAD:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()

    def _table(self, rows: Sequence[tuple[str, np.ndarray | Refusal]]) -> pa.Table:
        names, answers = zip(*rows, strict=True)
        errors = [answer.message if isinstance(answer, Refusal) else None for answer in answers]
        failed = np.array([error is not None for error in errors])
        nothing = np.zeros(len(self.predictor.classes), np.float32)
        probabilities = np.stack([nothing if isinstance(answer, Refusal) else answer for answer in answers])
        labels = np.array(self.predictor.classes, object)[probabilities.argmax(axis=1)]
        return pa.Table.from_arrays(
            [
                pa.array(names),
                pa.array(labels, mask=failed),
                *(pa.array(column, mask=failed) for column in (probabilities.max(axis=1), *probabilities.T)),
                pa.array([self.predictor.version] * len(rows)),
                pa.array(errors, pa.string()),
            ],
            schema=self.schema,
        )

    def _whole_parts(self) -> list[int]:
        """The rows of every part of an earlier run; none of them if it had other pictures or another model."""
        rows: list[int] = []
        while self._part(len(rows)).exists():
            with parquet.ParquetFile(self._part(len(rows))) as part:
                schema, count = part.schema_arrow, part.metadata.num_rows
            if not schema.equals(self.schema, check_metadata=True):
                log.warning("%s is of other pictures, or of another model: beginning anew", self.parts)
                for path in self.parts.iterdir():
                    path.unlink()
                return []
            rows.append(count)
        if rows:
            log.info("going on after %d of %d pictures", sum(rows), self.source.count)
        return rows

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:06d}.parquet"

    def _merge(self, file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, self.schema) as writer:
            for number in range(len(self._done)):
                writer.write_table(parquet.read_table(self._part(number)))


def _write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut."""
    beside = path.with_name(f"{path.name}.partial")
    with open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _classify(
    predictor: Predictor, pictures: Sequence[Picture], max_pixels: int
) -> list[tuple[str, np.ndarray | Refusal]]:
    """Reads and classifies pictures: the name of each, and its probabilities, or why it has none."""
    contents = [_read(picture) for picture in pictures]
    answers = iter(predictor.classify([each for each in contents if isinstance(each, bytes)], max_pixels))
    rows = []
    for picture, content in zip(pictures, contents, strict=True):
        answer = content if isinstance(content, Refusal) else next(answers)
        if isinstance(answer, Exception) and not isinstance(answer, Refusal):
            raise answer
        # What is not UTF-8 in a file's name can't be kept in Parquet as it is.
        name = picture.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        rows.append((name, answer))
    return rows


def _read(picture: Picture) -> bytes | Refusal:
    try:
        return picture.read()
    except Exception as error:  # file systems and archives raise many kinds
        return Refusal(400, "unreadable", f"The picture can't be read: {error}.")


def summary(target: Path) -> list[dict[str, Any]]:
    """How many pictures of a file of predictions got which label, and how sure the model was: a row a class."""
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
