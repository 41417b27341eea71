"""Requests that come at the same time share runs of the model, up to the limits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serving.online.batcher import _Job, _Queue, _Turn
from tests.helpers.pictures import photograph, png
from tests.helpers.service import InProcess, metric
from tests.helpers.waiting import wait_until

PNG = {"content-type": "image/png"}


def test_concurrent_requests_share_runs_and_get_their_own_answers(service: str) -> None:
    pictures = [png(32 + 8 * (index % 3), 40, seed=index) for index in range(60)]

    def ask(picture: bytes) -> dict[str, float]:
        response = httpx.post(f"{service}/classify", files={"image": picture}, timeout=60)
        return response.raise_for_status().json()["probabilities"]

    alone = [ask(picture) for picture in pictures]
    runs = metric(service, "classifier_batch_size_count")
    with ThreadPoolExecutor(30) as pool:
        together = list(pool.map(ask, pictures * 3))
    assert metric(service, "classifier_batch_size_count") - runs < len(together)
    for one, other in zip(alone * 3, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_full_queue_refuses_and_the_admitted_are_answered(in_process: InProcess) -> None:
    picture = png(500, 500)
    with in_process(max_queue=2, max_pictures=2) as client:
        refused_before = metric(client, "classifier_refusals_total", code="queue_full")

        def ask(_: int) -> httpx.Response:
            return client.post("/classify", content=picture, headers=PNG)

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(ask, range(40)))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert all(answer.json()["code"] == "queue_full" for answer in refused)
        assert metric(client, "classifier_refusals_total", code="queue_full") - refused_before == len(refused)
        assert metric(client, "classifier_queue_length") == 0
        assert ask(0).status_code == 200


@pytest.mark.parametrize("side", [2000, 990], ids=["large", "not large"])
def test_a_request_that_takes_too_long_gets_503_and_its_pictures_are_left_out(in_process: InProcess, side: int) -> None:
    picture = photograph(side, side, "JPEG2000")  # a tenth of a second and more to decode
    with in_process(max_seconds=0.5) as client:
        decoded = metric(client, "classifier_decode_seconds_count")
        answer = client.post("/classify_batch", files=[("images", picture)] * 60)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["code"] == "timeout"
        wait_until(lambda: metric(client, "classifier_queue_length") == 0)
        assert metric(client, "classifier_decode_seconds_count") - decoded < 60
        wait_until(lambda: client.post("/classify", files={"image": png()}).status_code == 200)


def test_small_requests_do_not_wait_for_a_large_one(in_process: InProcess) -> None:
    """Sixty pictures that take a second of two cores, and beside them one at a time."""
    picture = photograph(900, 900)  # not large enough for the threads of its own
    with in_process(max_seconds=60) as client, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(client.post, "/classify_batch", files=[("images", picture)] * 60)
        while metric(client, "classifier_queue_length") < 60 and not batch.done():
            pass
        answered = 0
        while not batch.done():
            client.post("/classify", files={"image": png()}).raise_for_status()
            answered += not batch.done()
        assert len(batch.result().raise_for_status().json()["results"]) == 60
        assert answered  # one alone where the machine has other work


def test_every_request_has_its_turn() -> None:
    """A request of sixty pictures and many of one share the work by what it costs, and none starves."""
    loop = asyncio.new_event_loop()
    queue, batch = _Queue(), _Turn()
    made = [_Job(bytes(1000), None, loop.create_future(), batch, _Turn()) for _ in range(60)]  # type: ignore[arg-type]
    for job in made:
        queue.add(job)
    order = []
    for _ in range(100):  # there is always another one that waits
        single = _Job(bytes(1000), None, loop.create_future(), _Turn(), _Turn())  # type: ignore[arg-type]
        queue.add(single)
        job = queue.next()
        assert job
        queue.take(job)
        order.append(job.turn is batch)
    assert 10 <= sum(order) <= 60
    assert not all(order[:3]), "the first single one waits for one of the sixty at most"
    loop.close()
