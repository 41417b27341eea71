"""A step of training alone and beside busy neighbours, by how OpenMP's threads wait for one another, in one run.

python -m tests.benchmarks.busy_neighbours [NEIGHBOURS] [ROUNDS]

efficientnet_lite0 at 96 px in batches of 64. Each way is a process of its own, and they take turns; the medians are
printed beside those of libgomp's default. A neighbour is a process that computes without a pause.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.table import Table

STEPS = 2  # of a turn
# Spins of 10 ns each, before a thread that waits gives its core away; libgomp's default are 300,000.
WAYS = {
    "300000": {"GOMP_SPINCOUNT": "300000"},
    "10000": {"GOMP_SPINCOUNT": "10000"},
    "1000": {"GOMP_SPINCOUNT": "1000"},
    "100": {"GOMP_SPINCOUNT": "100"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def turns() -> None:
    """Trains an epoch of a few steps for every line that is read, and answers with its seconds a step."""
    from tests.benchmarks.training_throughput import BATCH_SIZE, our_epochs, pictures

    for rate in our_epochs(96, pictures(STEPS * BATCH_SIZE), "trainer.epochs=1000"):
        print(BATCH_SIZE / rate, flush=True)
        sys.stdin.readline()


def start(way: dict[str, str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | way
    command = [sys.executable, "-m", "tests.benchmarks.busy_neighbours", "turns"]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    answer(process)  # the first epoch chooses kernels and allocates memory
    return process


def answer(process: subprocess.Popen[str]) -> float:
    assert process.stdout
    return float(process.stdout.readline())


def seconds(process: subprocess.Popen[str]) -> float:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


@contextmanager
def busy(count: int) -> Iterator[None]:
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def main(neighbours: int, rounds: int) -> None:
    processes = [start(way) for way in WAYS.values()]
    alone, beside = [], []
    try:
        for _ in range(rounds):
            alone.append([seconds(process) for process in processes])
            with busy(neighbours):
                beside.append([seconds(process) for process in processes])
    finally:
        for process in processes:
            process.kill()
    table = Table("GOMP_SPINCOUNT", "alone, s", "of the default", f"beside {neighbours}, s", "of the default")
    medians = np.median(alone, 0), np.median(beside, 0)
    for name, *values in zip(WAYS, *medians, strict=True):
        cells = [(f"{value:.2f}", f"{value / first[0]:.2f}") for value, first in zip(values, medians, strict=True)]
        table.add_row(name, *cells[0], *cells[1])
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:] == ["turns"]:
        turns()
    else:
        main(*(int(word) for word in (sys.argv[1:] + ["4", "5"][len(sys.argv) - 1 :])))
