"""One log line and one count for each request, and a plain 500 for an exception that nobody expected.

Texts, keys and the messages of unexpected exceptions are never logged.
"""

import logging
import time
import traceback
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.server.core.service import Service
from nestling.server.http.problems import Respond, problem_of

LOG = logging.getLogger("nestling.server")
UNLOGGED = frozenset({"/health", "/ready", "/metrics"})


class AccessLog:
    """ASGI middleware: gives each request an id, logs and counts its end."""

    def __init__(self, app: ASGIApp, service: Service, respond: Respond) -> None:
        self._app, self._service, self._respond = app, service, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, request_id, status = time.perf_counter(), uuid.uuid4().hex[:16], 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(self._headers(request_id))
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except Exception as error:  # noqa: BLE001 - the last place where it can be answered
            _log_error(error, request_id)
            if not status:
                await self._respond(scope, problem_of(error))(scope, receive, tell)
        self._record(scope, request_id, status, time.perf_counter() - start)

    def _headers(self, request_id: str) -> list[tuple[bytes, bytes]]:
        closing = [(b"connection", b"close")] if self._service.draining else []
        return [(b"x-request-id", request_id.encode()), *closing]

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        self._service.metrics.requests.labels(path, str(status)).inc()
        self._service.metrics.duration.labels(path).observe(seconds)
        if path not in UNLOGGED:
            facts = {
                "id": request_id,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(seconds * 1000, 1),
            }
            LOG.info("request", extra={"fields": facts})


def _log_error(error: Exception, request_id: str) -> None:
    """Kind and place of an error; its message may hold a text."""
    places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-5:]]
    LOG.error("unexpected", extra={"fields": {"id": request_id, "error": type(error).__name__, "at": places}})
