"""SIGTERM under load: what was accepted is answered."""

import contextlib
import json
import signal
import socket
import threading

import httpx
import pytest

from tests.helpers.pictures import png
from tests.helpers.service import Serve, metric
from tests.helpers.waiting import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_without_a_word_though_an_upload_goes_on(serve: Serve, number: int) -> None:
    with serve(SERVING_MAX_SECONDS="1") as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /classify HTTP/1.1\r\nhost: me\r\ncontent-type: image/png\r\ncontent-length: 1000000\r\n\r\n"
            connection.sendall(head.encode())
            served.process.send_signal(number)
            assert served.process.wait(60) == 0
        assert "Traceback" not in served.log.read_text()


def test_accepted_requests_are_answered_and_new_ones_refused(serve: Serve) -> None:
    with serve(SERVING_MAX_BATCH="1", SERVING_MAX_SECONDS="120") as served:
        host, port = served.url.removeprefix("http://").split(":")
        body = png(1000, 1000)
        head = f"POST /classify HTTP/1.1\r\nhost: me\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
        answers: list[bytes] = []

        def ask() -> None:
            answer = b""
            # Who comes too late is refused by the closed port.
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=120) as connection:
                connection.sendall(head.encode() + body)
                while part := connection.recv(65_536):  # until the service closes the connection, as it then must
                    answer += part
            if answer:
                answers.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(48)]
        for thread in threads:
            thread.start()
        wait_until(lambda: metric(served.url, "classifier_queue_length") > 12)
        # In this order none is counted twice.
        accepted = metric(served.url, "classifier_requests_total", route="/classify")
        accepted += metric(served.url, "classifier_queue_length")
        served.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert served.process.wait(60) == 0
        assert len(answers) >= accepted
        for answer in answers:
            status, _, content = answer.partition(b"\r\n")
            assert status == b"HTTP/1.1 200 OK"
            assert "label" in json.loads(content.partition(b"\r\n\r\n")[2])
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{served.url}/livez")
        assert "Traceback" not in served.log.read_text()
