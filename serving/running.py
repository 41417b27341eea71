"""The service as a child process: started, waited for, stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from serving.model.errors import UserError

SECONDS_TO_START = 60
SECONDS_TO_STOP = 30


@contextmanager
def running(
    url: str, log: Path, environment: Mapping[str, str], python: str = sys.executable
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `python -m serving` until the block ends; it answers at `url`, and what it prints goes to `log`.

    `environment` is added to this process's own. Raises UserError where it ends, or is not ready in time.
    """
    with open(log, "wb") as output:
        everything = {**os.environ, **environment}
        process = subprocess.Popen([python, "-m", "serving"], env=everything, stdout=output, stderr=output)
    try:
        _wait_until_ready(process, url, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = log.read_text().strip().splitlines()[-1:]
            raise UserError(f"the service ended with code {process.returncode}: {' '.join(last)} (see {log})")
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise UserError(f"the service was not ready within {SECONDS_TO_START} seconds; see {log}")
