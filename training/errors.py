"""The one kind of failure that a user can mend."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Says in one or two lines what is wrong, with the value, and what to do; shown without a traceback."""


@contextmanager
def full_disk_in_words() -> Iterator[None]:
    """Makes a `UserError` of what a write to a full disk raises; every library has an exception of its own for it."""
    try:
        yield
    except UserError:  # in words already, as where one step is part of another
        raise
    except Exception as error:
        if not re.search("No space left on device|disk is full", str(error)):
            raise
        raise UserError(
            f"the disk is full ({str(error).splitlines()[0]:.120})\n"
            "Free some space, or name another disk with STATE_DIR; the same command goes on from the last checkpoint."
        ) from error


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the program with the message and exit code 2 when the block raises a `UserError`."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
