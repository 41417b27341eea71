"""Several copies of the service behind a proxy that tries again elsewhere what got no answer."""

import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from serving.model.pictures.decoding import MAX_PIXELS
from serving.model.predictor import Predictor
from serving.model.registry import champion_uri
from tests.helpers.pictures import png
from tests.helpers.service import Serve, metric, under_load
from tests.helpers.state import Trained, promote, with_metadata
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

POLL_SECONDS = 2
SECONDS_TO_LOAD = 1  # what a version takes beside the load on two cores, at most
PICTURES = [png(40, 30, seed) for seed in range(8)]


class Proxy(ThreadingHTTPServer):
    """By turns to each replica, and to the next one where a connection fails before there is an answer.

    Attributes:
        answered: how many answers each replica has given.
        tried_again: how many requests got none from the first.
    """

    def __init__(self, replicas: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), ToReplica)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.replicas = replicas
        self.turns = itertools.count()
        self.client = httpx.Client(timeout=30)
        self.answered: Counter[str] = Counter()
        self.tried_again: Counter[str] = Counter()

    def ask(self, path: str, content: bytes, content_type: str) -> httpx.Response:
        turn = next(self.turns)
        for offset in range(len(self.replicas)):
            replica = self.replicas[(turn + offset) % len(self.replicas)]
            with contextlib.suppress(httpx.TransportError):
                headers = {"content-type": content_type}
                answer = self.client.post(replica + path, content=content, headers=headers)
                self.answered[replica] += 1
                return answer
            self.tried_again[replica] += 1
        return httpx.Response(502)


class ToReplica(BaseHTTPRequestHandler):
    server: Proxy

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        answer = self.server.ask(self.path, content, self.headers["content-type"])
        self.send_response(answer.status_code)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """Not to the tests' output."""


def classify(proxy: Proxy) -> Callable[[int], tuple[int, httpx.Response]]:
    """Asks about one picture after the other; which it was, and its answer."""

    def ask(number: int) -> tuple[int, httpx.Response]:
        index = number % len(PICTURES)
        headers = {"content-type": "image/png"}
        return index, httpx.post(f"{proxy.url}/classify", content=PICTURES[index], headers=headers, timeout=60)

    return ask


def model(replica: str) -> dict[str, str]:
    told: dict[str, str] = httpx.get(f"{replica}/model", timeout=30).raise_for_status().json()
    return told


def test_copies_take_a_champion_together_and_one_that_dies_takes_no_request_with_it(
    serve: Serve, trained: Trained, own_registry: Path, tmp_path: Path
) -> None:
    settings = {"SERVING_MODEL": champion_uri(), "SERVING_POLL_SECONDS": str(POLL_SECONDS)}
    with contextlib.ExitStack() as running:
        # A directory each, as pods have it.
        replicas = [running.enter_context(serve(STATE_DIR=str(tmp_path / str(i)), **settings)) for i in range(3)]
        urls = [replica.url for replica in replicas]
        proxy = running.enter_context(Proxy(urls))
        running.callback(proxy.shutdown)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()

        def assert_all_is_counted(alive: list[str]) -> None:
            for url in alive:
                labels = {"route": "/classify", "status": "200"}
                assert metric(url, "classifier_requests_total", **labels) == proxy.answered[url]
                assert metric(url, "classifier_predictions_total") == proxy.answered[url]

        # The same probabilities under other names, so that an answer shows which version gave it.
        classes = model(urls[0])["classes"]
        names = {trained.version: list(classes)}
        with under_load(classify(proxy)) as answers:
            new = promote(trained, with_metadata(trained, classes=json.dumps([f"new {name}" for name in classes])))
            names[new] = [f"new {name}" for name in classes]
            wait_until(lambda: all(model(url)["version"] == new for url in urls))
            enough = len(answers) + 20
            wait_until(lambda: len(answers) > enough)
        loaded = [datetime.fromisoformat(model(url)["loaded_at"]) for url in urls]
        assert (max(loaded) - min(loaded)).total_seconds() < POLL_SECONDS + SECONDS_TO_LOAD
        assert sum(proxy.answered.values()) == len(answers)
        assert_all_is_counted(urls)
        assert not proxy.tried_again

        with under_load(classify(proxy)) as later:
            wait_until(lambda: len(later) > 20)
            replicas[0].process.kill()
            wait_until(lambda: proxy.tried_again[urls[0]] > 20)
        assert_all_is_counted(urls[1:])
        assert proxy.tried_again.keys() == {urls[0]}

    everything = [*answers, *later]
    assert {answer.status_code for _, answer in everything} == {200}
    assert {answer.json()["model"]["version"] for _, answer in everything} == names.keys()
    expected = Predictor(trained.onnx).classify(PICTURES, MAX_PIXELS, all_cores=False)
    for picture, answer in everything:
        said = answer.json()
        probabilities = dict(zip(names[said["model"]["version"]], expected[picture], strict=True))
        assert said["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert said["label"] == max(probabilities, key=probabilities.__getitem__)
