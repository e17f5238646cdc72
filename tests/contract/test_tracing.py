"""OpenTelemetry traces: nothing unless the standard variables ask, then a span a request and its stages.

Doors by which a text or a key could leave: attributes, names, events of any span.
"""

import gzip
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient
from tests.contract.serving import FakeEngine, loader, settings
from tests.contract.test_reach import BODY, ROOT, child

from nestling.errors import UsageError
from nestling.server.app import create_app
from nestling.server.http.tracing import Tracing, exporters
from nestling.server.telemetry import tracing

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@contextmanager
def traced(kept: InMemorySpanExporter, engine: FakeEngine | None = None) -> Iterator[TestClient]:
    app = create_app(settings(api_key=("sesame",)), loader(lambda: engine or FakeEngine()), tracing=Tracing([kept]))
    with TestClient(app, base_url="http://localhost", headers={"Authorization": "Bearer sesame"}) as client:
        yield client


def by_name(kept: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in kept.get_finished_spans()}


def test_a_request_is_a_span_below_its_callers_with_its_stages(kept: InMemorySpanExporter) -> None:
    with traced(kept) as client:
        body = {"input": "a secret text"}
        assert client.post("/v1/embeddings", json=body, headers={"traceparent": CALLER}).status_code == 200
    spans = by_name(kept)
    whole = spans["POST /v1/embeddings"]
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" in CALLER
    assert dict(whole.attributes or {}) == {
        "http.request.method": "POST", "url.path": "/v1/embeddings", "url.scheme": "http",
        "http.response.status_code": 200, "http.route": "/v1/embeddings",
    }  # fmt: skip
    for stage in ("tokenize", "compute"):
        below = spans[stage]
        assert below.parent is not None
        assert whole.context is not None
        assert below.parent.span_id == whole.context.span_id
    shown = " ".join(span.to_json() for span in spans.values())
    assert not re.search("secret|sesame", shown)


def test_a_ranking_and_a_refusal_are_spans_too(kept: InMemorySpanExporter) -> None:
    with traced(kept) as client:
        ranking = {"query": "a", "documents": ["b"], "scoring": "cosine"}
        assert client.post("/v1/rerank", json=ranking).status_code == 200
        assert client.post("/v1/embeddings", json={"input": ""}).status_code == 400
        assert client.get("/nothing").status_code == 404
    spans = by_name(kept)
    assert {"POST /v1/rerank", "compute"} <= spans.keys()
    statuses = {name: (span.attributes or {}).get("http.response.status_code") for name, span in spans.items()}
    assert (statuses["POST /v1/embeddings"], statuses["GET"]) == (400, 404)
    assert all(span.status.is_unset for span in spans.values() if span.name.startswith(("POST", "GET")))


def test_a_failure_of_ours_is_an_error_and_what_watches_is_no_span(kept: InMemorySpanExporter) -> None:
    with traced(kept, FakeEngine(poison=b"poison")) as client:
        assert client.post("/v1/embeddings", json={"input": "poison"}).status_code == 500
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
    spans = by_name(kept)
    assert not spans["POST /v1/embeddings"].status.is_ok
    assert not spans["POST /v1/embeddings"].status.is_unset
    assert "compute" in spans
    assert not [span for span in spans.values() if re.search("poison|exception", span.to_json())]
    assert not [name for name in spans if "health" in name or "ready" in name or "metrics" in name]


class Collector(BaseHTTPRequestHandler):
    taken: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        packed = self.headers.get("content-encoding") == "gzip"
        self.taken.append((self.path, gzip.decompress(body) if packed else body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    taken: list[tuple[str, bytes]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Mine", (Collector,), {"taken": taken}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_reach_a_collector_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        with child() as server:
            assert httpx.post(f"{server.url}/v1/embeddings", json=BODY, timeout=20).status_code == 200
    assert {path for path, _ in taken} == {"/v1/traces"}
    found = [ExportTraceServiceRequest.FromString(body).resource_spans[0] for _, body in taken]
    assert {span.name for one in found for span in one.scope_spans[0].spans} >= {"POST /v1/embeddings", "compute"}
    facts = {one.key: one.value.string_value for one in found[0].resource.attributes}
    assert (facts["service.name"], facts["deployment.environment"]) == ("nestling", "test")


def test_a_collector_that_is_away_costs_no_request_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with child() as server:
        assert httpx.post(f"{server.url}/v1/embeddings", json=BODY, timeout=20).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def test_nothing_is_loaded_where_nobody_asks() -> None:
    code = "import sys; from nestling.server.telemetry import tracing; print(tracing(), 'opentelemetry' in sys.modules)"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert said.stdout == "None False\n"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_there_are_no_traces_where_they_are_not_asked_for_or_are_off(environ: dict[str, str]) -> None:
    assert tracing(environ) is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin: expected one of otlp, console, none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: expected http/protobuf"),
    ],
)
def test_what_cannot_be_honoured_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        exporters(environ)


def test_a_service_keeps_the_name_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    kept = InMemorySpanExporter()
    with traced(kept) as client:
        client.post("/v1/embeddings", json=BODY)
    assert {span.resource.attributes["service.name"] for span in kept.get_finished_spans()} == {"mine"}


def test_a_missing_extra_is_one_line(tmp_path: object) -> None:
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from nestling.cli import main; main()"
    environ = {"PATH": "", "PYTHONPATH": os.pathsep.join(sys.path), "NESTLING_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", "0"],
        env=environ | {"OTEL_TRACES_EXPORTER": "otlp"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "OTEL_TRACES_EXPORTER is set" in line
    assert "pip install 'nestling[otel]'" in line
