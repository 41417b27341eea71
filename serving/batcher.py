"""Micro-batching: pictures of concurrent requests share runs of the model."""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving import metrics
from serving.errors import Refusal
from serving.predictor import RUNS, Predictor


@dataclass(eq=False)
class _Job:
    content: bytes
    predictor: Predictor
    answer: asyncio.Future[np.ndarray | Refusal]


class Batcher:
    """Runs what is queued as soon as the model is free: no request waits for others to come.

    Several batches are decoded and run at a time, each in a thread of its own.

    Args:
        max_queue: pictures that may wait or run.
        max_batch: pictures in one run.
        max_pixels: of a picture.
    """

    def __init__(self, max_queue: int, max_batch: int, max_pixels: int) -> None:
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._max_pixels = max_pixels
        self._admitted = 0
        self._runs = 0
        self._queue: deque[_Job] = deque()
        self._filled = asyncio.Event()
        self._pool = ThreadPoolExecutor(RUNS, "model")
        self._workers = [asyncio.create_task(self._work()) for _ in range(RUNS)]

    def check_room(self) -> None:
        """Raises Refusal 429 while no further picture would be taken: a request can be refused before it is read."""
        self._admit(1)

    async def predict(self, predictor: Predictor, contents: Sequence[bytes]) -> list[np.ndarray | Refusal]:
        """Classifies image files.

        Returns:
            For each in order float32 (classes,), or why it has no answer: 400 not a picture or broken, 413 too large.

        Raises:
            Refusal: 429, the queue is full.
        """
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
        if self._admitted + count > self._max_queue:
            message = f"{self._admitted} pictures wait for an answer, at most {self._max_queue} may; ask again later."
            raise Refusal(429, "queue_full", message, {"retry-after": "1"})

    def _count(self, change: int) -> None:
        self._admitted += change
        metrics.QUEUE_LENGTH.set(self._admitted)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            if batch := self._next_batch():
                self._runs += 1
                contents = [job.content for job in batch]
                alone = self._runs == 1 and not self._queue
                classify = batch[0].predictor.classify
                answers = await loop.run_in_executor(self._pool, classify, contents, self._max_pixels, alone)
                self._runs -= 1
                for job, answer in zip(batch, answers, strict=True):
                    if job.answer.done():  # its request ran out of time meanwhile
                        continue
                    if isinstance(answer, Exception) and not isinstance(answer, Refusal):
                        job.answer.set_exception(answer)
                    else:
                        job.answer.set_result(answer)
            else:
                self._filled.clear()

    def _next_batch(self) -> list[_Job]:
        """Takes the oldest jobs that somebody still waits for, for one model: this worker's share of what is there."""
        batch: list[_Job] = []
        share = min(math.ceil(self._admitted / RUNS), self._max_batch)
        while self._queue and len(batch) < share:
            if batch and self._queue[0].predictor is not batch[0].predictor:
                break
            job = self._queue.popleft()
            if not job.answer.done():
                batch.append(job)
        return batch
