"""Predictions for many pictures as one Parquet file, in parts that survive a kill."""

import fcntl
import itertools
import json
import logging
import os
import shutil
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from serving.errors import Refusal, StartError
from serving.images import decode
from serving.predictor import Predictor
from serving.sources import Picture, Source

log = logging.getLogger(__name__)

PART_ROWS = 2048  # what a kill can cost
BATCH = 32  # larger ones are no faster on a CPU
RUNS = 2  # of the model at a time: one goes on while the other ends
BATCH_PIXELS = 2**24  # the model's resize works on float32: 200 MB
WAITING_PIXELS = 2**26  # decoded pictures that wait, twice: behind the threads and for others of their size
AHEAD = 2 * BATCH


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
        self._models = ThreadPoolExecutor(RUNS, "model")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._models.shutdown(cancel_futures=True)
        os.close(self._lock)

    @property
    def rows_left(self) -> int:
        return self.source.count - sum(self._done)

    def run(self) -> Iterator[None]:
        """Does the work; yields once a picture."""
        pictures = _decoded(self.source.read_from(sum(self._done)), self.max_pixels)
        while self.rows_left:
            part = _Part(self.predictor, self._models)
            for picture in itertools.islice(pictures, min(PART_ROWS, self.rows_left)):
                part.add(picture)
                yield
            table = part.finish(self.schema)
            _write_whole(self._part(len(self._done)), partial(parquet.write_table, table))
            self._done.append(len(table))
        _write_whole(self.target, self._merge)
        shutil.rmtree(self.parts)

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


class _Decoded(NamedTuple):
    """A picture's uint8 (H, W, 3) pixels, or why there are none."""

    name: str
    pixels: np.ndarray | None
    error: str | None

    @property
    def size(self) -> int:
        return 0 if self.pixels is None else self.pixels.shape[0] * self.pixels.shape[1]


def _decoded(pictures: Iterator[Picture], max_pixels: int) -> Iterator[_Decoded]:
    """Reads and decodes ahead in threads, in order."""
    lock = threading.Lock()
    waiting_pixels = 0

    def count(pixels: int) -> None:
        nonlocal waiting_pixels
        with lock:
            waiting_pixels += pixels

    with ThreadPoolExecutor() as pool:
        pending: deque[Future[_Decoded]] = deque()

        def first() -> _Decoded:
            picture = pending.popleft().result()
            count(-picture.size)
            return picture

        for picture in pictures:
            future = pool.submit(_decode, picture, max_pixels)
            future.add_done_callback(lambda future: count(future.result().size))
            pending.append(future)
            while len(pending) > AHEAD or waiting_pixels > WAITING_PIXELS:
                yield first()
        while pending:
            yield first()


def _decode(picture: Picture, max_pixels: int) -> _Decoded:
    # What is not UTF-8 in a file's name can't be kept in Parquet as it is.
    name = picture.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    try:
        return _Decoded(name, decode(picture.read(), max_pixels), None)
    except Refusal as refusal:
        return _Decoded(name, None, refusal.message)
    except Exception as error:  # file systems and archives raise many kinds
        return _Decoded(name, None, f"The picture can't be read: {error}.")


class _Part:
    """The rows of one part. Pictures of the same size wait for each other, to be classified in one batch."""

    def __init__(self, predictor: Predictor, models: Executor) -> None:
        self._predictor = predictor
        self._models = models
        self._running: deque[tuple[list[int], Future[np.ndarray]]] = deque()
        self._names: list[str] = []
        self._errors: list[str | None] = []
        self._probabilities: list[np.ndarray | None] = []
        self._waiting: dict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)
        self._waiting_pixels = 0

    def add(self, picture: _Decoded) -> None:
        row = len(self._names)
        self._names.append(picture.name)
        self._errors.append(picture.error)
        self._probabilities.append(None)
        if picture.pixels is None:
            return
        shape = picture.pixels.shape
        group = self._waiting[shape]
        group[row] = picture.pixels
        self._waiting_pixels += picture.size
        if len(group) == BATCH or (len(group) + 1) * picture.size > BATCH_PIXELS:
            self._classify(shape)
        elif self._waiting_pixels > WAITING_PIXELS:
            self._classify_all()

    def finish(self, schema: pa.Schema) -> pa.Table:
        self._classify_all()
        while self._running:
            self._take_answers()
        classes = self._predictor.classes
        failed = np.array([error is not None for error in self._errors])
        nothing = np.zeros(len(classes), np.float32)
        probabilities = np.stack([nothing if answer is None else answer for answer in self._probabilities])
        labels = np.array(classes, object)[probabilities.argmax(axis=1)]
        return pa.Table.from_arrays(
            [
                pa.array(self._names),
                pa.array(labels, mask=failed),
                *(pa.array(column, mask=failed) for column in (probabilities.max(axis=1), *probabilities.T)),
                pa.array([self._predictor.version] * len(failed)),
                pa.array(self._errors, pa.string()),
            ],
            schema=schema,
        )

    def _classify_all(self) -> None:
        for shape in list(self._waiting):
            self._classify(shape)

    def _classify(self, shape: tuple[int, ...]) -> None:
        group = self._waiting.pop(shape)
        self._waiting_pixels -= len(group) * shape[0] * shape[1]
        images = np.stack(list(group.values()))
        self._running.append((list(group), self._models.submit(self._predictor.predict, images)))
        if len(self._running) > RUNS:
            self._take_answers()

    def _take_answers(self) -> None:
        rows, answers = self._running.popleft()
        for row, answer in zip(rows, answers.result(), strict=True):
            self._probabilities[row] = answer


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
