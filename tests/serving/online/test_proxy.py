"""Behind a proxy, and at other addresses than 127.0.0.1."""

import socket

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.helpers.pictures import png
from tests.helpers.service import InProcess, Serve
from tests.helpers.waiting import free_port


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_redirects_name_neither_scheme_nor_host(client: httpx.Client, path: str) -> None:
    """What a browser gets to https://pictures.example/cats/ must stay there, whatever the proxy tells of itself."""
    headers = {"x-forwarded-proto": "https", "x-forwarded-host": "pictures.example"}
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (307, "ui/")


@pytest.mark.parametrize("prefix_given", ["/cats", "cats", "/cats/"])
def test_a_prefix_may_or_may_not_be_taken_off_by_the_proxy(in_process: InProcess, prefix_given: str) -> None:
    with in_process(root_path=prefix_given) as client:
        for prefix in ("", "/cats"):
            assert client.get(f"{prefix}/model").status_code == 200
            assert client.get(f"{prefix}/readyz").status_code == 200
            assert client.get(f"{prefix}/ui/").status_code == 200
            assert client.post(f"{prefix}/classify", files={"image": png()}).status_code == 200
        assert client.get("/catsmodel").status_code == 404
        assert client.get("/cats").headers["location"] == "cats/"
        assert client.get("/cats/").headers["location"] == "ui/"
        assert client.get("/docs.json").json()["servers"] == [{"url": "."}]


@pytest.mark.slow
def test_the_page_works_under_a_prefix(serve: Serve, browser: Browser) -> None:
    with serve(SERVING_ROOT_PATH="/cats/") as served:
        page = browser.new_page()
        page.goto(f"{served.url}/cats/ui")
        expect(page.locator("#model")).to_contain_text("efficientnet_lite0", timeout=30_000)
        page.close()


@pytest.mark.parametrize("path", ["/model", "/metrics", "/docs.json", "/livez", "/readyz", "/ui/", "/ui/app.js", "/"])
def test_head_is_answered_wherever_get_is(service: str, path: str) -> None:
    got, headed = httpx.get(service + path), httpx.head(service + path)
    assert headed.status_code == got.status_code
    assert headed.content == b""
    assert headed.headers.get("content-type") == got.headers.get("content-type")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_it_listens_at_addresses_of_ipv6_and_at_names(serve: Serve, host: str) -> None:
    port = free_port()
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with serve(url=url, SERVING_HOST=host, SERVING_PORT=str(port)) as served:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family) as connection:
                connection.connect(address)
        assert httpx.post(f"{served.url}/classify", files={"image": png()}).status_code == 200
