"""Several candidates: one that fails takes nothing with it."""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from accelerate.utils.memory import clear_device_cache

from serving.model.errors import UserError, causes, in_words, without_credentials

log = logging.getLogger(__name__)

Failures = dict[str, Exception]  # by the candidate's name


def train_each(
    candidates: Iterable[str], try_out: Callable[[str], None], begin: Callable[[str], Callable[[], str]]
) -> tuple[dict[str, str], Failures]:
    """Tries every candidate on a batch, then trains those that passed; returns their runs, and why the others failed.

    All have begun before the first is asked for its run: where they are trained side by side. Raises UserError, before
    that, where the settings of one are wrong.

    Args:
        begin: begins one and returns what waits for its run, or trains it then.
    """
    runs: dict[str, str] = {}
    failures: Failures = {}
    names = list(dict.fromkeys(candidates))
    for name in names:
        with noted(failures, name, but=(UserError,)):
            try_out(name)
    begun = {name: begin(name) for name in names if name not in failures}
    for name, run_of in begun.items():
        with noted(failures, name):
            runs[name] = run_of()
    return runs, failures


@contextmanager
def noted(failures: Failures, name: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Notes why a candidate fails instead of raising it, but for some errors."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        where = "" if in_words(error) else f"\n{without_credentials(''.join(traceback.format_exception(error)))}"
        log.warning("%s failed: %s%s", name, reason(error), where)
        for each in causes(error):  # they hold the failed one's memory, which the next one needs
            traceback.clear_frames(each.__traceback__)
        clear_device_cache(garbage_collection=True)
        failures[name] = error


def reason(error: Exception) -> str:
    """Why a candidate failed, in a line."""
    words = without_credentials(in_words(error) or f"{type(error).__name__}: {error}")
    return " ".join(words.split())[:500]


def none_left(failures: Mapping[str, Exception]) -> Exception:
    """What is raised where all failed: the only one's own error, or what became of each."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    return UserError("no candidate is left: " + "; ".join(f"{name}: {reason(e)}" for name, e in failures.items()))
