"""Micro-batching: pictures of concurrent requests share runs of the model, by turns."""

import asyncio
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from serving.model.cpus import batches, cpus
from serving.model.errors import PictureError
from serving.model.pictures.memory import LARGE, LargePicture, PixelMemory
from serving.model.predictor import Answer, Predictor
from serving.online import metrics
from serving.online.errors import Refusal
from serving.settings import Settings

# What a picture costs beyond its decoding, in bytes of an image file that take as long to decode.
MODEL_COST = 50_000


@dataclass(eq=False)
class _Turn:
    """A request's place among those that wait: when, in the queue's own time, its next picture is due."""

    due: float = 0.0


@dataclass(eq=False)
class _Job:
    content: bytes
    predictor: Predictor
    answer: asyncio.Future[np.ndarray | PictureError]
    turn: _Turn
    large_turn: _Turn
    pixels: int = 0  # of a large picture
    alone: bool = False  # memory ran out for it beside others
    queued: float = 0.0


class _Queue:
    """Jobs by the turns of their requests, however many pictures each brings.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): a request's next job is due when its last one has had its
    share of the work since; a new request's is due at once. The queue's time goes on with the work, by the number of
    requests, so that new ones don't hold old ones up.
    """

    def __init__(self) -> None:
        self._waiting: dict[_Turn, deque[_Job]] = {}
        self._now = 0.0
        self.filled = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, job: _Job) -> None:
        if job.turn not in self._waiting:
            job.turn.due = max(job.turn.due, self._now)
            self._waiting[job.turn] = deque()
        self._waiting[job.turn].append(job)
        job.queued = time.perf_counter()
        self.filled.set()

    def next(self) -> _Job | None:
        """The job that is due, of those that somebody still waits for. It stays in the queue."""
        while self._waiting:
            turn = min(self._waiting, key=lambda turn: turn.due)
            jobs = self._waiting[turn]
            if not jobs[0].answer.done():
                return jobs[0]
            self._drop(turn)
        self.filled.clear()
        return None

    def take(self, job: _Job) -> None:
        """Takes the job that `next` has returned."""
        cost = job.pixels or len(job.content) + MODEL_COST
        self._now = max(self._now, job.turn.due) + cost / len(self._waiting)
        job.turn.due += cost
        self._drop(job.turn)

    def _drop(self, turn: _Turn) -> None:
        jobs = self._waiting[turn]
        jobs.popleft()
        if not jobs:
            del self._waiting[turn]


class Batcher:
    """Runs what is queued as soon as the model is free: no request waits for others to come.

    Several batches are decoded and run at a time, each in a thread of its own. At most `max_queue` pictures wait or
    run, `max_batch` in one run; none may have more than `max_pixels`. Large pictures have threads of their own, to
    which the system gives the time that the others leave, and of which `max_pixel_bytes` says how many decode at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admitted = 0
        self._runs = 0
        self._memory = PixelMemory(settings.max_pixel_bytes)
        self._queue, self._large = _Queue(), _Queue()
        self._pool = ThreadPoolExecutor(batches(), "model")
        self._large_pool = ThreadPoolExecutor(cpus(), "large pictures", _give_way)
        work = [self._work() for _ in range(batches())] + [self._work_on_large() for _ in range(cpus())]
        self._workers = [asyncio.create_task(each) for each in work]
        self.last_answered: bytes | None = None  # the content of a picture that is not large

    def check_room(self) -> None:
        """Raises Refusal 429 while no further picture would be taken: a request can be refused before it is read."""
        self._admit(1)

    async def predict(self, predictor: Predictor, contents: Sequence[bytes]) -> list[np.ndarray | PictureError]:
        """Classifies image files: for each in order float32 (classes,), or why it has no answer.

        Raises Refusal 429 where too many wait, MemoryError where one is too much for the memory even alone.
        """
        self._admit(len(contents))
        self._count(len(contents))
        loop, turns = asyncio.get_running_loop(), (_Turn(), _Turn())
        jobs = [_Job(content, predictor, loop.create_future(), *turns) for content in contents]
        try:
            for job in jobs:
                self._queue.add(job)
            return await asyncio.gather(*(job.answer for job in jobs))
        finally:
            for job in jobs:  # nobody waits for those that are not answered
                job.answer.cancel()
            self._count(-len(contents))

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._pool.shutdown()
        self._large_pool.shutdown()

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
            await self._queue.filled.wait()
            if batch := self._next_batch():
                self._runs += 1
                all_cores = self._runs == 1 and not self._queue
                await self._classify(self._pool, batch, partial(self._answers, batch, all_cores=all_cores))
                self._runs -= 1

    async def _work_on_large(self) -> None:
        while True:
            await self._large.filled.wait()
            if job := self._large.next():
                self._large.take(job)
                await self._classify(self._large_pool, [job], partial(self._large_answer, job))

    async def _classify(
        self, pool: ThreadPoolExecutor, batch: Sequence[_Job], classify: Callable[[], list[Answer]]
    ) -> None:
        try:
            answers = await asyncio.get_running_loop().run_in_executor(pool, classify)
        except Exception as error:  # a worker that ended would leave all that comes later without an answer
            answers = [error] * len(batch)
        for job, answer in zip(batch, answers, strict=True):
            self._settle(job, answer)

    def _answers(self, batch: Sequence[_Job], *, all_cores: bool, large: bool = False) -> list[Answer]:
        start = time.perf_counter()
        for job in batch:
            metrics.QUEUE_SECONDS.observe(start - job.queued)
        # Nobody waits any more for one that is done: nothing is decoded in its place.
        contents = (b"" if job.answer.done() else job.content for job in batch)
        return batch[0].predictor.classify(
            contents,
            self._settings.max_pixels,
            all_cores=all_cores,
            large=large,
            on_decode=metrics.DECODE_SECONDS.observe,
            on_run=metrics.observe_run,
        )

    def _large_answer(self, job: _Job) -> list[Answer]:
        with self._memory.room(None if job.alone else job.pixels):
            return self._answers([job], all_cores=not self._runs, large=True)

    def _settle(self, job: _Job, answer: Answer) -> None:
        if job.answer.done():  # its request ran out of time meanwhile
            return
        if isinstance(answer, LargePicture):
            job.pixels = answer.pixels
            self._add_to_large(job)
        elif isinstance(answer, MemoryError) and not job.alone:
            job.alone = True
            self._add_to_large(job)
        elif isinstance(answer, np.ndarray | PictureError):
            if isinstance(answer, np.ndarray) and not job.pixels and len(job.content) < LARGE:
                self.last_answered = job.content
            job.answer.set_result(answer)
        else:
            job.answer.set_exception(answer)

    def _add_to_large(self, job: _Job) -> None:
        job.turn = job.large_turn
        self._large.add(job)

    def _next_batch(self) -> list[_Job]:
        """Takes the jobs that are due, for one model: this worker's share of what is there."""
        batch: list[_Job] = []
        share = max(1, min(math.ceil(self._admitted / batches()), self._settings.max_batch))
        while len(batch) < share and (job := self._queue.next()):
            if batch and job.predictor is not batch[0].predictor:
                break
            self._queue.take(job)
            batch.append(job)
        return batch


def _give_way() -> None:
    """Lowers this thread's priority, where the system knows threads by their ids."""
    if sys.platform == "linux":
        with suppress(OSError):  # where it is forbidden
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
