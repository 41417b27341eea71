"""HTTP/1.1 as uvicorn speaks it, for clients that would like HTTP/2 as well."""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A request's line and headers, with the offer to go on in HTTP/2.
OFFER = re.compile(rb"(?is)\A([A-Z]+ [^\r\n]* HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?)upgrade:[ \t]*h2c[ \t]*\r\n")


class WithoutUpgrades(HttpToolsProtocol):
    """Answers as if HTTP/2 had not been offered, which RFC 9110 (7.8) allows: httptools would drop such a body.

    Java's HttpClient and `curl --http2` offer it.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(OFFER.sub(rb"\1", data, count=1) if b"h2c" in data[:8192] else data)
