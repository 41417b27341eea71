"""The one kind of failure that a user can mend."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """Says in one or two lines what is wrong, with the value, and what to do; shown without a traceback."""


def require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError where a setting is none of its choices."""
    if value not in choices:
        raise UserError(f"{key}={value}: choose {', '.join(choices[:-1])} or {choices[-1]}")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the program with the message and exit code 2 when the block raises a `UserError`."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
