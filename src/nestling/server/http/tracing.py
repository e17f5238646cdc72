"""OpenTelemetry traces: a span for each request, below the caller's where its headers name one, and its stages.

The only module that imports opentelemetry; loaded only if the standard OTEL_* variables ask for traces. They alone
configure it: exporter, endpoint, headers, sampler, service name. Spans hold paths, statuses and sizes, never texts or
keys.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from threading import Thread
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling._util.version import __version__
from nestling.errors import UsageError
from nestling.server.http.access_log import UNLOGGED

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SERVER_ERROR = 500
_QUIET: Any = {"record_exception": False, "set_status_on_exception": False}
"""An exception's message may hold a text."""
LAST_SPANS_S = 5.0
"""Seconds for the collector to take the last spans when the server stops."""


class Tracing:
    """Makes and exports a server's spans; `close` flushes the rest."""

    def __init__(self, exporters: list[SpanExporter]) -> None:
        named = OTELResourceDetector().detect().attributes
        own = {} if SERVICE_NAME in named else {SERVICE_NAME: "nestling"}
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("nestling", __version__)

    def span(self, stage: str) -> AbstractContextManager[object]:
        """A span for a stage of the current task's request."""
        return self.tracer.start_as_current_span(stage, **_QUIET)

    def middleware(self, app: ASGIApp) -> "Traces":
        """ASGI middleware that makes the spans of requests."""
        return Traces(app, self.tracer)

    def close(self) -> None:
        """Flush the remaining spans; give up on a collector that does not take them in time."""
        sending = Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(LAST_SPANS_S)


def exporters(environ: Mapping[str, str] = os.environ) -> list[SpanExporter]:
    """The exporters that OTEL_TRACES_EXPORTER names, otlp by default; UsageError for an unknown one."""
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    names = [one.strip() for one in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    known = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"OTEL_TRACES_EXPORTER={unknown[0]}: expected one of {', '.join(known)}, none")
    if "otlp" in names and protocol != "http/protobuf":
        raise UsageError(f"{_PROTOCOLS[1]}={protocol}: expected http/protobuf")
    return [known[name]() for name in names]


class Traces:
    """ASGI middleware: a span for each request that is logged."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in UNLOGGED:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, caller = scope["method"], self._propagator.extract(headers)
        facts = {"http.request.method": method, "url.path": scope["path"][:200], "url.scheme": scope["scheme"]}
        with self._tracer.start_as_current_span(method, caller, SpanKind.SERVER, facts, **_QUIET) as span:

            async def tell(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _answered(span, message["status"])
                await send(message)

            try:
                await self._app(scope, receive, tell)
            finally:
                if route := scope.get("route"):
                    span.update_name(f"{method} {route.path}")
                    span.set_attribute("http.route", route.path)


def _answered(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= _SERVER_ERROR:
        span.set_status(Status(StatusCode.ERROR))
