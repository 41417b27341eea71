"""The one kind of failure that a user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Says in one or two lines what is wrong, with the value, and what to do; shown without a traceback."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the program with the message and exit code 2 when the block raises a `UserError`."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
