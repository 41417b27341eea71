"""Ports, and waiting for what comes about."""

import contextlib
import random
import socket
import time
from collections.abc import Callable

import httpx


def free_port() -> int:
    """Below those that the kernel gives to connections: nobody takes it while a server that had it is started again."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for a server that may not listen yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds} seconds")
