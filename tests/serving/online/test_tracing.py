"""OpenTelemetry's spans, where its own variable says where to."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.helpers.pictures import png
from tests.helpers.service import Serve
from tests.helpers.waiting import wait_until


@pytest.mark.slow
def test_every_request_is_a_span(serve: Serve) -> None:
    spans: list[str] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(f"{self.path} {span.name}" for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with serve(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}", OTEL_BSP_SCHEDULE_DELAY="100"
    ) as served:
        httpx.post(f"{served.url}/classify", files={"image": png()}).raise_for_status()
        wait_until(lambda: any(span.startswith("/v1/traces POST /classify") for span in spans), seconds=20)
    collector.shutdown()
