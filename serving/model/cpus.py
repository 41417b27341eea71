"""How many CPUs are given: all that is sized by them asks here."""

import os
from functools import cache

from loky import cpu_count

from serving.model.errors import UserError

MAX_BATCH = 8  # pictures in one run of the model: on a CPU larger batches leave a core's cache and are slower


def cpus() -> int:
    """SERVING_THREADS, or the CPUs that affinity and the cgroup's quota leave, rounded up; at least 1.

    Raises UserError where SERVING_THREADS is no such number.
    """
    given = os.environ.get("SERVING_THREADS", "")
    if not given:
        return _left()
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"SERVING_THREADS={given} is not a number of threads; give 1 or more, or unset it")
    return int(given)


@cache
def _left() -> int:
    return cpu_count()  # reads several files


def batches() -> int:
    """How many batches are decoded and run at a time: one more than the CPUs, so that none idles when a batch ends."""
    return cpus() + 1 if cpus() > 1 else 1
