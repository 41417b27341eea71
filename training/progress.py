"""How far long work has come: a bar on a terminal, plain lines in a log."""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items; shows `what`, how many are done and how fast: of processes that share them the first one."""
    if os.environ.get("RANK", "0") != "0":
        yield from items
        return
    # Of processes side by side that do not share their work, the bars would lie over one another.
    if sys.stderr.isatty() and ("RANK" in os.environ or not multiprocessing.parent_process()):
        yield from tqdm(items, what, total, leave=False, dynamic_ncols=True)
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            log.info("%s: %d of %s, %.1f a second", what, done, total or "?", done / (now - start))
