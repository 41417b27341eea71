"""Commands as a user runs them, and what they say."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.helpers.state import ROOT


def run_module(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ...` in the checkout."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def assert_user_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """A mistake ends with exit code 2 and one or two lines that hold `words`, not with a traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    # After it, Prefect says that its temporary server stops.
    lines = [line for line in message.splitlines() if " | prefect - " not in line and "EventsWorker" not in line]
    assert_in_words("\n".join(lines), *words)


def assert_in_words(message: str, *words: str) -> None:
    """One or two lines that hold `words`."""
    assert len(message.splitlines()) <= 2, message
    for word in words:
        assert word in message


def assert_raises_in_words(error: type[Exception], call: Callable[[], object], *words: str) -> None:
    with pytest.raises(error) as failure:
        call()
    assert_in_words(str(failure.value), *words)
