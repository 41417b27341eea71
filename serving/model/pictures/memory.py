"""What the pixels of large pictures may occupy at a time, over all threads."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LARGE = 1_000_000  # pixels; what is smaller is decoded anywhere, and adds a few MB for each thread
BYTES = 4  # of a pixel, as Pillow holds it
MAX_PIXEL_BYTES = 256_000_000

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_freed_memory_back() -> None:
    """Makes malloc return what a large picture has occupied to the system.

    By default it keeps blocks of up to 32 MB for the next one: after eight pictures of 49 megapixels twice the memory.
    """
    mallopt(M_MMAP_THRESHOLD, 2**20)


def mallopt(option: int, value: int) -> None:
    """Sets an option of malloc for this process, where the C library is glibc."""
    if setting := getattr(ctypes.CDLL(None), "mallopt", None):
        setting(option, value)


class LargePicture(Exception):
    """Stands for a picture that was not decoded, since it needs room first."""

    def __init__(self, pixels: int) -> None:
        super().__init__(f"{pixels} pixels")
        self.pixels = pixels


class PixelMemory:
    """Room for so many bytes of pixels at full size: who finds none waits for its turn.

    Converting pixels takes copies: while a picture is decoded, up to five times its bytes are in use.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._changed = threading.Condition()
        self._next = threading.Lock()  # held by the one that is next: a stream of smaller ones must not pass it

    @contextmanager
    def room(self, pixels: int | None) -> Iterator[None]:
        """Holds room for a picture of so many pixels; None: all the room, so that it is alone."""
        size = self._max_bytes if pixels is None else min(pixels * BYTES, self._max_bytes)
        with self._next, self._changed:
            self._changed.wait_for(lambda: self._held + size <= self._max_bytes)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
