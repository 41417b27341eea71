"""Micro-batching: pictures of concurrent requests share runs of the model."""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving import metrics
from serving.errors import Refusal
from serving.images import count_pixels, decode
from serving.predictor import Predictor


@dataclass(eq=False)
class _Job:
    content: bytes
    pixels: int
    predictor: Predictor
    answer: asyncio.Future[np.ndarray]


class Batcher:
    """Runs what is queued as soon as the model is free: no request waits for others to come.

    One batch is decoded and run at a time, in a thread. It holds at most `max_pixels` pixels, as one picture may, so
    however many pictures wait, decoded ones take no more memory than the largest that is allowed.

    Args:
        max_queue: pictures that may wait or run.
        max_batch: pictures in one run.
    """

    def __init__(self, max_queue: int, max_batch: int, max_pixels: int) -> None:
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._max_pixels = max_pixels
        self._admitted = 0
        self._queue: deque[_Job] = deque()
        self._filled = asyncio.Event()
        self._runner = ThreadPoolExecutor(1, "model")
        self._decoders = ThreadPoolExecutor(os.cpu_count(), "decoder")
        self._worker = asyncio.create_task(self._work())

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
            answers = await asyncio.gather(*(self._predict(predictor, content) for content in contents))
        finally:
            self._count(-len(contents))
        return answers

    async def close(self) -> None:
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._runner.shutdown()
        self._decoders.shutdown()

    def _admit(self, count: int) -> None:
        if self._admitted + count > self._max_queue:
            message = f"{self._admitted} pictures wait for an answer, at most {self._max_queue} may; ask again later."
            raise Refusal(429, "queue_full", message, {"retry-after": "1"})

    def _count(self, change: int) -> None:
        self._admitted += change
        metrics.QUEUE_LENGTH.set(self._admitted)

    async def _predict(self, predictor: Predictor, content: bytes) -> np.ndarray | Refusal:
        loop = asyncio.get_running_loop()
        try:
            pixels = await loop.run_in_executor(self._decoders, count_pixels, content, self._max_pixels)
            job = _Job(content, pixels, predictor, loop.create_future())
            self._queue.append(job)
            self._filled.set()
            return await job.answer
        except Refusal as refusal:
            return refusal

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            if batch := self._next_batch():
                for job, answer in await loop.run_in_executor(self._runner, self._run, batch):
                    if job.answer.done():  # its request ran out of time meanwhile
                        continue
                    if isinstance(answer, Exception):
                        job.answer.set_exception(answer)
                    else:
                        job.answer.set_result(answer)
            else:
                self._filled.clear()

    def _next_batch(self) -> list[_Job]:
        """Takes the oldest jobs that somebody still waits for, as many as a batch may hold."""
        batch: list[_Job] = []
        pixels = 0
        while self._queue and len(batch) < self._max_batch:
            job = self._queue[0]
            if not job.answer.done():
                pixels += job.pixels
                if pixels > self._max_pixels and batch:
                    break
                batch.append(job)
            self._queue.popleft()
        return batch

    def _run(self, batch: list[_Job]) -> list[tuple[_Job, np.ndarray | Exception]]:
        """Decodes a batch and runs the model once for all pictures of one size; in the runner's thread."""
        answers: list[tuple[_Job, np.ndarray | Exception]] = []
        groups: dict[tuple[Predictor, tuple[int, ...]], list[tuple[_Job, np.ndarray]]] = {}
        for job, pixels in zip(batch, self._decode(batch), strict=True):
            if isinstance(pixels, Exception):
                answers.append((job, pixels))
            else:
                groups.setdefault((job.predictor, pixels.shape), []).append((job, pixels))
        for (predictor, _), group in groups.items():
            jobs, pictures = zip(*group, strict=True)
            metrics.BATCH_SIZE.observe(len(jobs))
            try:
                answers += zip(jobs, predictor.predict(np.stack(pictures)), strict=True)
            except Exception as error:  # out of memory, say: these requests fail, the worker goes on
                answers += [(job, error) for job in jobs]
        return answers

    def _decode(self, batch: list[_Job]) -> list[np.ndarray | Exception]:
        if len(batch) == 1:  # spares the way through another thread
            return [self._decode_one(batch[0])]
        return list(self._decoders.map(self._decode_one, batch))

    def _decode_one(self, job: _Job) -> np.ndarray | Exception:
        try:
            return decode(job.content, self._max_pixels)
        except Exception as error:
            return error
