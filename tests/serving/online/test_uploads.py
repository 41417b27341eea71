"""How a picture may be sent: in which form, how slowly, and how many bytes at a time."""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.pictures import photograph, png
from tests.helpers.service import Memory, Serve, Served, metric
from tests.helpers.waiting import wait_until

PICTURE = png(60, 50)
TEXT = base64.b64encode(PICTURE).decode()
PART = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n%b\r\n--x--\r\n'

WAYS: dict[str, dict[str, Any]] = {
    "a form": {"files": {"image": PICTURE}},
    "a form whose part has no file name": {
        "content": PART % PICTURE,
        "headers": {"content-type": "multipart/form-data; boundary=x"},
    },
    "the body": {"content": PICTURE, "headers": {"content-type": "image/png"}},
    "base64": {"json": {"image": TEXT}},
    "base64 in lines": {"json": {"image": "\r\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))}},
    "base64 for URLs, without its end": {"json": {"image": base64.urlsafe_b64encode(PICTURE).decode().rstrip("=")}},
    "a data URL": {"json": {"image": f"data:image/png;base64,{TEXT}"}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_can_be_sent_in_each_way(client: httpx.Client, way: str) -> None:
    expected = client.post("/classify", files={"image": PICTURE}).raise_for_status().json()
    answer = client.post("/classify", **WAYS[way]).raise_for_status().json()
    assert answer["probabilities"] == expected["probabilities"]


@pytest.mark.parametrize(
    "request_",
    [
        {"url": "/classify?top_k=2", "files": {"image": PICTURE}},
        {"url": "/classify", "files": {"image": PICTURE}, "data": {"top_k": "2"}},
        {"url": "/classify", "json": {"image": TEXT, "top_k": 2}},
    ],
    ids=["query", "form", "json"],
)
def test_the_number_of_classes_can_be_sent_in_each_way(client: httpx.Client, request_: dict[str, Any]) -> None:
    assert len(client.post(**request_).raise_for_status().json()["probabilities"]) == 2


def started(url: str, length: int, first: bytes = b"") -> HTTPConnection:
    """A request of which only the first bytes are sent."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/classify")
    connection.putheader("content-type", "image/png")
    connection.putheader("content-length", str(length))
    connection.endheaders(first)
    return connection


@pytest.fixture(scope="module")
def impatient(serve: Serve) -> Iterator[Served]:
    """It waits two seconds for an answer, and two for bytes, of which it wants 20,000 a second."""
    limits = {"SERVING_MAX_SECONDS": "2", "SERVING_RECEIVE_SECONDS": "2", "SERVING_RECEIVE_RATE": "20000"}
    with serve(**limits) as served:
        yield served


def test_a_slow_upload_gets_its_answer(impatient: Served) -> None:
    """Twice as long as an answer may take."""
    picture = png(200, 200)
    connection = started(impatient.url, len(picture))
    steps = 40
    for step in range(steps):
        connection.send(picture[len(picture) * step // steps : len(picture) * (step + 1) // steps])
        time.sleep(0.1)
    with contextlib.closing(connection):
        assert connection.getresponse().status == 200


@pytest.mark.parametrize("bytes_a_tenth", [0, 500], ids=["none", "too few"])
def test_an_upload_of_which_nothing_or_too_little_comes_gets_408(impatient: Served, bytes_a_tenth: int) -> None:
    start = time.monotonic()
    with contextlib.closing(started(impatient.url, 1_000_000, b"abc")) as connection:
        if bytes_a_tenth:
            with contextlib.suppress(OSError):
                for _ in range(35):
                    connection.send(bytes(bytes_a_tenth))
                    time.sleep(0.1)
        answer = connection.getresponse()
        assert answer.status == 408
        assert json.load(answer)["code"] == "too_slow"
    assert 2 <= time.monotonic() - start < 6
    assert httpx.post(f"{impatient.url}/classify", files={"image": PICTURE}).status_code == 200


def test_who_goes_away_in_the_middle_is_no_failure_of_the_service(serve: Serve) -> None:
    with serve() as served:
        started(served.url, 100, b"abc").close()
        wait_until(lambda: metric(served.url, "classifier_refusals_total", code="disconnected") == 1)
        assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
def test_many_slow_uploads_take_no_more_memory_than_is_allowed(serve: Serve) -> None:
    """200 of 30 MB at once: what there is no room for gets 429, all others an answer, and then all room is free."""
    body = PICTURE + bytes(30_000_000 - len(PICTURE))
    limits = {"SERVING_MAX_HELD_BYTES": "100000000", "SERVING_RECEIVE_SECONDS": "60"}

    async def upload(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /classify HTTP/1.1\r\nhost: me\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode())
        answer = asyncio.create_task(reader.readline())
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), 300_000):
                if answer.done():
                    break
                writer.write(body[start : start + 300_000])
                await writer.drain()
                await asyncio.sleep(0.02)
        status = int((await answer).split()[1])
        writer.close()
        return status

    async def all_of_them(port: int) -> list[int]:
        return await asyncio.gather(*(upload(port) for _ in range(200)))

    with serve(**limits) as served:
        memory = Memory(served)
        with ThreadPoolExecutor(1) as pool:  # a browser of another test has a loop in this thread
            statuses = pool.submit(asyncio.run, all_of_them(int(served.url.rpartition(":")[2]))).result()
        assert set(statuses) == {200, 429}
        assert memory.peak() < 400e6  # their bytes, once more joined to a picture
        answer = httpx.post(f"{served.url}/classify", content=body, headers={"content-type": "image/png"}, timeout=60)
        assert answer.status_code == 200


def test_a_body_is_refused_before_it_is_read_where_there_is_no_room(serve: Serve) -> None:
    """While one request holds three of four kilobytes, another of two is refused by its head alone."""
    with serve(SERVING_MAX_BODY_BYTES="4000", SERVING_MAX_HELD_BYTES="4000") as served:
        with contextlib.closing(started(served.url, 4000, bytes(3000))):
            wait_until(lambda: refused_by_its_head(served) == 429)
        wait_until(lambda: refused_by_its_head(served) == 0)


def refused_by_its_head(served: Served) -> int:
    """The status of the answer to a request of which no byte of the body is sent; 0: it waits for the body."""
    with contextlib.closing(started(served.url, 2000)) as connection:
        assert connection.sock
        connection.sock.settimeout(0.5)
        try:
            return connection.getresponse().status
        except TimeoutError:
            return 0


def test_who_goes_away_is_not_worked_for(serve: Serve) -> None:
    with serve(SERVING_MAX_SECONDS="60") as served:
        with httpx.Client(timeout=1) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{served.url}/classify_batch", files=[("images", photograph(3000, 4000))] * 60)
        wait_until(lambda: metric(served.url, "classifier_queue_length") == 0)
        wait_until(lambda: metric(served.url, "classifier_refusals_total", code="disconnected") == 1)
        assert metric(served.url, "classifier_decode_seconds_count") < 40
        assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize("way", ["a form", "the body"])
def test_a_client_that_offers_http_2_is_answered(service: str, way: str) -> None:
    """As curl --http2 and Java's HttpClient do."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    request = {**WAYS[way], "headers": {**offer, **WAYS[way].get("headers", {})}}
    for _ in range(2):
        assert httpx.post(f"{service}/classify", **request).status_code == 200


def test_a_wrong_data_url_takes_no_time(client: httpx.Client) -> None:
    start = time.monotonic()
    assert client.post("/classify", json={"image": "data:" * 200_000}).status_code == 422
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "nonsense"])
def test_a_form_of_any_charset_is_answered_or_refused(client: httpx.Client, charset: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\n%b\r\n--x--\r\n' % PICTURE
    for content in (PART % PICTURE, part):
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        answer = client.post("/classify", content=content, headers=headers)
        assert answer.status_code in (200, 400, 422), answer.text
        assert answer.status_code == 200 or answer.json()["code"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which nothing can be written any more."""
    disk = tmp_path / "full"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk])
    if not mounted or mounted.returncode != 0:
        pytest.skip("no small disk: a tmpfs can't be mounted here")
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_forms_need_no_disk(serve: Serve, full_disk: Path) -> None:
    with serve(TMPDIR=str(full_disk)) as served:
        large = PICTURE + bytes(3_000_000)
        httpx.post(f"{served.url}/classify", files={"image": large}).raise_for_status()
