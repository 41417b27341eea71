"""The failures that have a name: who can fix them, and whether a retry is worth it."""

import errno
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = (
    *("out of memory", "memory allocation", "insufficient memory"),  # Pillow, CUDA; libheif; libjpeg
    *("bad_alloc", "bad allocation", "failed to allocate memory", "bytes of memory"),  # ONNX Runtime; OpenVINO
)
# What stands before the host of an address, also of one that became a path and lost a slash (models:/NAME@ALIAS has no
# host); and the names of variables whose values are credentials wherever they turn up.
USER_INFO = re.compile(r"\b([a-z][\w+.-]+://|https?:/)[^/\s]*@", re.IGNORECASE)
SECRETS = re.compile(
    r"(PASSWORD|SECRET|TOKENS?|(AUTH|CONNECTION)_STRING|(SECRET|ACCESS|API|ACCOUNT)_KEY(_ID)?)$", re.IGNORECASE
)
SHORTEST_SECRET = 8  # what is shorter may be a part of any word


def without_credentials(text: str) -> str:
    """A text whose addresses name no user and no password, and which holds no credential of this environment."""
    text = USER_INFO.sub(r"\1", text)
    for name, values in os.environ.items():
        if SECRETS.search(name):
            for value in values.split(","):
                for secret in (value, value.partition(":")[2]):  # of USER:PASSWORD the latter alone as well
                    if len(secret) >= SHORTEST_SECRET:
                        text = text.replace(secret, "***")
    return text


def first_line(error: BaseException) -> str:
    """Of what an error says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class WordedError(Exception):
    """An error whose message is for people, wherever it ends up: no credential is in it, whatever it was made from."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class UserError(WordedError):
    """A setting, a path, data or a model that someone has to fix: a retry would fail the same way.

    The message says in one or two lines what is wrong, with the value, and what to do.
    """


class NoPictures(UserError):
    """There is no picture in a source, or there is no source."""


class NoRegistry(UserError):
    """There is no registry where the settings say; the first training makes it."""


class ModelError(UserError):
    """There is no such model, or it does not answer as one of ours."""


class NotAllowed(ModelError):
    """A version does not allow the precision that was asked for."""


class WeightsError(WordedError):
    """The weights that a model starts from can't be fetched now: its settings are right, and others are there."""


class RegistryError(WordedError):
    """The registry or its storage does not answer; a retry may succeed."""


class PictureError(Exception):
    """A picture can't be read or decoded, or is too large; `message` is a sentence for people.

    `code` is for programs: `unreadable`, `not_a_picture`, `broken_picture` or `too_many_pixels`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python's way or in that of a decoder, ONNX Runtime or CUDA."""
    words = str(error).lower()
    if "security limit exceeded" in words:  # a damaged HEIF picture's, of a size that no memory would hold
        return False
    return isinstance(error, MemoryError) or any(form in words for form in OUT_OF_MEMORY)


@contextmanager
def exit_in_words() -> Iterator[None]:
    """Ends the program with exit code 2 and one or two lines, where the error has words for people; Ctrl-C with 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not (message := in_words(error)):
            raise
        print(f"error: {without_credentials(message)}", file=sys.stderr)
        sys.exit(2)


def in_words(error: BaseException) -> str | None:
    """What people are told without a traceback; None for a mistake of ours, which needs its traceback."""
    if isinstance(error, UserError | WeightsError):
        return str(error)
    if _is_full_shared_memory(error):
        return (
            "the shared memory (/dev/shm), through which trainer.num_workers hand pictures over, is full\n"
            "Give the container more of it (--shm-size=2g), or set trainer.num_workers=0."
        )
    if disk := full_disk(error):
        return f"the disk of {disk} is full\nFree some space, or name another disk with STATE_DIR; then start it again."
    if is_forbidden(error):
        return f"{error}\nChange the permissions, or choose another place (STATE_DIR is where everything is kept)."
    return str(error) if isinstance(error, RegistryError) else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it comes from, one after the other."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def is_forbidden(error: BaseException) -> bool:
    """Whether a file or folder may not be read or written."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def _is_full_shared_memory(error: BaseException | None) -> bool:
    """Whether PyTorch's data loader says so, in its own words."""
    return any("</torch_" in str(each) or "out of shared memory" in str(each) for each in causes(error))


def full_disk(error: BaseException | None) -> str | None:
    """A path on the full disk that an error came from. Libraries wrap the kernel's error, and SQLite has its own."""
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full")
    for each in causes(error):
        # MLflow's words may be those of a server, whose disk is not ours.
        from_elsewhere = isinstance(each, RegistryError) or type(each).__module__.startswith("mlflow.")
        in_its_words = not from_elsewhere and any(text in str(each) for text in words)
        if getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or in_its_words:
            return str(getattr(each, "filename", None) or _fullest_disk())
    return None


def _fullest_disk() -> str:
    """What failed may not say where it wrote: of the two places there are, the one with less space."""
    places = filter(os.path.exists, (os.environ.get("STATE_DIR", "state"), tempfile.gettempdir()))
    return os.path.abspath(min(places, key=lambda place: shutil.disk_usage(place).free))
