"""What large pictures take: bounded memory, which comes back, and no other request's time."""

import base64
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.helpers.pictures import photograph, png
from tests.helpers.service import Memory, Serve, Served, metric
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

CONTRACT_0 = Path(__file__).parents[1] / "model" / "contract_0" / "model.onnx"
SIDE = 7000
# A decoder's copies are up to five times the pixels' four bytes.
PEAK = 5 * 4 * SIDE**2 + 100e6


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """49 megapixels each; PNG and WebP can't be decoded at a fraction of their size."""
    webp = photograph(SIDE, SIDE, "WEBP", method=0)
    return {"JPEG": photograph(SIDE, SIDE, "JPEG"), "PNG": photograph(SIDE, SIDE), "WEBP": webp}


def ask(served: Served, picture: bytes) -> httpx.Response:
    return httpx.post(f"{served.url}/classify", files={"image": picture}, timeout=120)


@pytest.mark.parametrize("model", ["this contract", "contract 0"])
def test_their_memory_is_bounded_and_comes_back(serve: Serve, pictures: dict[str, bytes], model: str) -> None:
    """Eight at a time of each format; a model of contract 0 takes every picture at its full size."""
    settings = {"SERVING_MODEL": str(CONTRACT_0)} if model == "contract 0" else {}
    with serve(SERVING_MAX_SECONDS="120", **settings) as served, ThreadPoolExecutor(8) as pool:
        ask(served, png()).raise_for_status()
        memory = Memory(served)
        for picture in pictures.values():
            for answer in pool.map(lambda _, picture=picture: ask(served, picture), range(8)):
                answer.raise_for_status()
        # With the model's own arrays of such a picture at contract 0.
        assert memory.peak() < (2 * PEAK if settings else PEAK)
        wait_until(lambda: memory.now() < 100e6, seconds=10)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_beside_many_in_a_request_small_ones_are_as_quick(serve: Serve, form: str) -> None:
    """The median of a small one at most doubles; it is given three times here, where other tests run beside."""
    picture = photograph(3000, 4000, form)
    with serve(SERVING_MAX_SECONDS="120") as served, httpx.Client() as client:

        def small() -> float:
            start = time.perf_counter()
            client.post(f"{served.url}/classify", files={"image": png()}).raise_for_status()
            return time.perf_counter() - start

        several = [("images", picture)] * 20
        alone, beside = [], []
        with ThreadPoolExecutor(1) as pool:
            for _ in range(2):  # by turns, as other tests run beside this one
                alone += [small() for _ in range(50)]
                batch = pool.submit(httpx.post, f"{served.url}/classify_batch", files=several, timeout=120)
                while not batch.done():
                    beside.append(small())
                assert len(batch.result().raise_for_status().json()["results"]) == 20
        assert statistics.median(beside) < 3 * statistics.median(alone)


def test_out_of_memory_is_no_broken_picture(serve: Serve, pictures: dict[str, bytes]) -> None:
    with serve(SERVING_MAX_SECONDS="120") as served:
        ask(served, png()).raise_for_status()
        process = psutil.Process(served.process.pid)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 100_000_000, psutil.RLIM_INFINITY))
        for form in ("PNG", "WEBP"):
            alone = ask(served, pictures[form])
            both = [("images", png()), ("images", pictures[form])]
            among = httpx.post(f"{served.url}/classify_batch", files=both, timeout=120)
            for answer in (alone, among):
                assert answer.status_code == 503
                assert answer.json()["code"] == "out_of_memory"
                assert answer.headers["retry-after"]
        large = base64.b64encode(bytes(30_000_000)).decode()[:31_000_000]
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 40_000_000, psutil.RLIM_INFINITY))
        assert httpx.post(f"{served.url}/classify", json={"image": large}, timeout=120).status_code == 503
        ask(served, png()).raise_for_status()
        assert "MemoryError" in served.log.read_text()
        process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        ask(served, pictures["PNG"]).raise_for_status()


def test_large_ones_are_answered_in_time_beside_many_small_ones(serve: Serve, pictures: dict[str, bytes]) -> None:
    """Within the ten seconds that are the default, and three times that here, where other tests run beside."""
    stop = threading.Event()
    with serve(SERVING_MAX_SECONDS="30") as served, ThreadPoolExecutor(12) as pool:

        def small() -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    client.post(f"{served.url}/classify", files={"image": png()}).raise_for_status()

        busy = [pool.submit(small) for _ in range(8)]
        try:
            statuses = [answer.status_code for answer in pool.map(ask, [served] * 3, [pictures["PNG"]] * 3)]
        finally:
            stop.set()
        assert statuses == [200] * 3
        for each in busy:
            each.result()


def test_large_ones_are_answered_in_their_turn(serve: Serve, pictures: dict[str, bytes]) -> None:
    """One of a request of its own does not wait for all of another's."""
    many = [("images", photograph(3000, 4000))] * 40
    with serve(SERVING_MAX_SECONDS="120") as served, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(httpx.post, f"{served.url}/classify_batch", files=many, timeout=120)
        wait_until(lambda: metric(served.url, "classifier_queue_length") >= 40)
        ask(served, photograph(2000, 2000)).raise_for_status()
        assert not batch.done()
        batch.result().raise_for_status()
