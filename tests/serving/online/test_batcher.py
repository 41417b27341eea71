"""Requests that come at the same time share runs of the model, up to the limits."""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx
import pytest

from tests.helpers.pictures import png
from tests.helpers.service import InProcess, Serve, metric
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


def test_a_request_that_takes_too_long_gets_503(serve: Serve) -> None:
    with serve(SERVING_MAX_SECONDS="1") as served:
        start = time.monotonic()
        with contextlib.closing(unfinished_request(served.url)) as connection:
            answer = connection.getresponse()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert json.load(answer)["code"] == "timeout"
        assert 1 <= time.monotonic() - start < 5
        assert httpx.post(f"{served.url}/classify", files={"image": png()}).status_code == 200


def test_who_goes_away_in_the_middle_is_no_failure_of_the_service(serve: Serve) -> None:
    with serve() as served:
        unfinished_request(served.url).close()
        wait_until(lambda: metric(served.url, "classifier_refusals_total", code="disconnected") == 1)
        assert "Traceback" not in served.log.read_text()


def unfinished_request(url: str) -> HTTPConnection:
    """A request whose body does not come to its end."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/classify")
    connection.putheader("content-type", "image/png")
    connection.putheader("content-length", "100")
    connection.endheaders(b"abc")
    return connection


def test_pictures_of_many_sizes_fit_one_run(in_process: InProcess) -> None:
    """More pixels than one batch may hold are run in several."""
    with in_process(max_pixels=4_000) as client:
        runs = metric(client, "classifier_batch_size_count")
        files = [("images", png(50, 70, seed=index)) for index in range(8)]
        answer = client.post("/classify_batch", files=files).raise_for_status().json()
        assert all("label" in result for result in answer["results"])
        assert metric(client, "classifier_batch_size_count") - runs == 8
