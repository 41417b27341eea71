"""What a model answers to files, as the rows of a table: the work of a batch, in whichever process it is done."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from serving.model.cpus import MAX_BATCH, batches
from serving.model.errors import PictureError, UserError
from serving.model.pictures.files import File
from serving.model.pictures.memory import MAX_PIXEL_BYTES, LargePicture, PixelMemory
from serving.model.predictor import Answer, Predictor

# A picture's name, and its probabilities or why it has none.
Row = tuple[str, np.ndarray | PictureError]


class Limits(NamedTuple):
    """The model runs for `max_batch` pictures at a time. Large ones together occupy `max_pixel_bytes`, or one does."""

    max_pixels: int
    max_pixel_bytes: int = MAX_PIXEL_BYTES
    max_batch: int = MAX_BATCH


class Scorer:
    """Classifies files in threads of its own, until it is closed.

    Where memory runs out, a picture is tried again alone; UserError where that is too much as well.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor = predictor
        self._limits = limits
        self._memory = PixelMemory(limits.max_pixel_bytes)
        self._threads = ThreadPoolExecutor(batches(), "model")
        self.answered_in = f"{predictor.precision} in {predictor.runtime}"
        origin = {"max_pixels": str(limits.max_pixels), "model_version": predictor.version}
        self.schema = pa.schema(
            [
                ("name", pa.string()),
                ("label", pa.string()),
                ("confidence", pa.float32()),
                *((f"probability_{label}", pa.float32()) for label in predictor.classes),
                ("model_version", pa.string()),
                ("error", pa.string()),
            ],
            metadata={**predictor.metadata.properties(), **origin, "answered_in": self.answered_in},
        )

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def rows(self, parts: Iterable[Iterable[File]]) -> Iterator[Row]:
        """The answers in order; the threads are some batches ahead, and no batch has files of two parts."""
        running: deque[Future[list[Row]]] = deque()
        for part in parts:
            files = iter(part)
            while batch := list(islice(files, self._limits.max_batch)):
                running.append(self._threads.submit(self._classify, batch))
                if len(running) > 2 * batches():
                    yield from running.popleft().result()
        while running:
            yield from running.popleft().result()

    def table(self, rows: Sequence[Row]) -> pa.Table:
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
            schema=self.schema,
        )

    def _classify(self, files: Sequence[File]) -> list[Row]:
        contents = [_read(file) for file in files]
        readable = [content for content in contents if isinstance(content, bytes)]
        answers = iter(self._predictor.classify(readable, self._limits.max_pixels, all_cores=False))
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
            (answer,) = self._predictor.classify([content], self._limits.max_pixels, all_cores=False, large=True)
        return answer


def _read(file: File) -> bytes | PictureError:
    try:
        return file.read()
    except PictureError as error:
        return error
    except MemoryError as error:
        raise UserError(f"{file.name}: there is not enough memory to read it\nGive the run more memory.") from error
