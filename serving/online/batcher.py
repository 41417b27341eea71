"""Micro-batching: pictures of concurrent requests share runs of the model."""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from serving.model.errors import PictureError
from serving.model.predictor import RUNS, Answer, Predictor
from serving.online import metrics
from serving.online.errors import Refusal
from serving.settings import Settings


@dataclass(eq=False)
class _Job:
    content: bytes
    predictor: Predictor
    answer: asyncio.Future[np.ndarray | PictureError]


class Batcher:
    """Runs what is queued as soon as the model is free: no request waits for others to come.

    Several batches are decoded and run at a time, each in a thread of its own. At most `max_queue` pictures wait or
    run, `max_batch` in one run; none may have more than `max_pixels`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admitted = 0
        self._runs = 0
        self._queue: deque[_Job] = deque()
        self._filled = asyncio.Event()
        self._pool = ThreadPoolExecutor(RUNS, "model")
        self._workers = [asyncio.create_task(self._work()) for _ in range(RUNS)]

    def check_room(self) -> None:
        """Raises Refusal 429 while no further picture would be taken: a request can be refused before it is read."""
        self._admit(1)

    async def predict(self, predictor: Predictor, contents: Sequence[bytes]) -> list[np.ndarray | PictureError]:
        """Classifies image files: for each in order float32 (classes,), or why it has no answer. Raises Refusal 429."""
        self._admit(len(contents))
        self._count(len(contents))
        try:
            loop = asyncio.get_running_loop()
            jobs = [_Job(content, predictor, loop.create_future()) for content in contents]
            self._queue += jobs
            self._filled.set()
            return await asyncio.gather(*(job.answer for job in jobs))
        finally:
            self._count(-len(contents))

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._pool.shutdown()

    def _admit(self, count: int) -> None:
        limit = self._settings.max_queue
        if self._admitted + count > limit:
            message = (
                f"{self._admitted} pictures are waiting; with {count} more there would be over {limit}. Try later."
            )
            raise Refusal(429, "queue_full", message, {"retry-after": "1"})

    def _count(self, change: int) -> None:
        self._admitted += change
        metrics.QUEUE_LENGTH.set(self._admitted)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            if batch := self._next_batch():
                self._runs += 1
                answers = await self._classify(batch)
                self._runs -= 1
                for job, answer in zip(batch, answers, strict=True):
                    if job.answer.done():  # its request ran out of time meanwhile
                        continue
                    if isinstance(answer, np.ndarray | PictureError):
                        job.answer.set_result(answer)
                    else:
                        job.answer.set_exception(answer)
            else:
                self._filled.clear()

    async def _classify(self, batch: Sequence[_Job]) -> list[Answer]:
        classify = partial(
            batch[0].predictor.classify,
            [job.content for job in batch],
            self._settings.max_pixels,
            all_cores=self._runs == 1 and not self._queue,
            on_run=metrics.BATCH_SIZE.observe,
        )
        return await asyncio.get_running_loop().run_in_executor(self._pool, classify)

    def _next_batch(self) -> list[_Job]:
        """Takes the oldest jobs that somebody still waits for, for one model: this worker's share of what is there."""
        batch: list[_Job] = []
        share = min(math.ceil(self._admitted / RUNS), self._settings.max_batch)
        while self._queue and len(batch) < share:
            if batch and self._queue[0].predictor is not batch[0].predictor:
                break
            job = self._queue.popleft()
            if not job.answer.done():
                batch.append(job)
        return batch
