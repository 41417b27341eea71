"""Minutes of more load than the service can take: what it answers, refuses and keeps in memory.

python -m tests.benchmarks.serving_load MODEL.onnx [MINUTES]

Ends with code 1 where an answer was wrong, a refusal was not 429, an accepted request waited longer than it may, or
memory grew by more than 5 % after the first minute.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil

from serving.model.pictures.decoding import decode
from serving.running import running
from serving.settings import Settings
from tests.helpers.pictures import png
from tests.helpers.waiting import free_port
from training.release.export import onnx_classify

CLIENTS = 64
QUEUE = 32
PICTURES = 50
LARGEST_GROWTH = 0.05


class Load:
    """What so many clients, each asking again as soon as it has an answer, have seen so far."""

    def __init__(self, url: str, pictures: list[bytes], expected: np.ndarray) -> None:
        self.url = url
        self.pictures = pictures
        self.expected = expected
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.wrong = 0

    async def run(self, minutes: float) -> None:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(timeout=60, limits=limits) as session:
            until = time.monotonic() + 60 * minutes
            await asyncio.gather(*(self.ask(session, client, until) for client in range(CLIENTS)))

    async def ask(self, session: httpx.AsyncClient, client: int, until: float) -> None:
        index = client
        while (start := time.monotonic()) < until:
            index = (index + 1) % len(self.pictures)
            answer = await session.post(f"{self.url}/classify", files={"image": self.pictures[index]})
            self.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                self.latencies.append(time.monotonic() - start)
                probabilities = answer.json()["probabilities"]
                given = [probabilities[name] for name in sorted(probabilities)]
                self.wrong += not np.allclose(given, self.expected[index], atol=1e-4)
            else:
                await asyncio.sleep(0.05)  # as who is told to ask again later


def memory(process: subprocess.Popen[bytes]) -> int:
    """The bytes that a process and its children hold for themselves."""
    parent = psutil.Process(process.pid)
    return sum(child.memory_info().rss for child in [parent, *parent.children(recursive=True)])


async def watch(process: subprocess.Popen[bytes], seconds: float) -> list[int]:
    samples = []
    for _ in range(int(seconds)):
        await asyncio.sleep(1)
        samples.append(memory(process))
    return samples


def main(model: str, minutes: float) -> int:
    files = [png(32 + 8 * (index % 3), 32, seed=index) for index in range(PICTURES)]
    classify = onnx_classify(Path(model))
    expected = np.concatenate([classify(decode(file)[None]) for file in files])

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {"SERVING_PORT": str(port), "SERVING_MODEL": model, "SERVING_MAX_QUEUE": str(QUEUE)}
    with (
        tempfile.TemporaryDirectory() as directory,
        running(url, Path(directory) / "log", {**settings, "SERVING_MAX_PICTURES": str(QUEUE)}) as process,
    ):
        classes = httpx.get(f"{url}/model").json()["classes"]
        load = Load(url, files, expected[:, np.argsort(classes)])

        async def both() -> list[int]:
            _, samples = await asyncio.gather(load.run(minutes), watch(process, 60 * minutes))
            return samples

        samples = asyncio.run(both())

    settled = samples[60:] or samples[len(samples) // 2 :]
    third = max(len(settled) // 3, 1)
    growth = statistics.median(settled[-third:]) / statistics.median(settled[:third]) - 1
    seconds = sorted(load.latencies)
    print(f"answers by status: {dict(load.statuses)}, {load.statuses[200] / 60 / minutes:.0f} right ones a second")
    print(f"latency of the accepted: median {statistics.median(seconds):.3f} s, most {seconds[-1]:.3f} s")
    print(f"memory: {samples[-1] / 1e6:.0f} MB, {growth:+.1%} from the first to the last third after a minute")
    print(f"wrong answers: {load.wrong}")
    fine = (
        not load.wrong
        and set(load.statuses) <= {200, 429}
        and seconds[-1] <= Settings().max_seconds
        and growth <= LARGEST_GROWTH
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 5))
