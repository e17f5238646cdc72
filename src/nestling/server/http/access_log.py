"""One log line and one count for each request, and a plain 500 for an unexpected exception.

Texts, keys and the messages of unexpected exceptions are never logged.
"""

import asyncio
import logging
import secrets
import time
import traceback

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.server.core.refusals import UnavailableError
from nestling.server.core.service import Service
from nestling.server.http.problems import CLIENT_LEFT, Problem, Respond, problem_of

LOG = logging.getLogger("nestling.server")
UNLOGGED = frozenset({"/health", "/ready", "/metrics"})


class AccessLog:
    """ASGI middleware: gives each request an id, and logs and counts it when it ends."""

    def __init__(self, app: ASGIApp, service: Service, respond: Respond) -> None:
        self._app, self._service, self._respond = app, service, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, request_id, status, complete = time.perf_counter(), secrets.token_hex(8), 0, False

        async def tell(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(self._headers(request_id))
            await send(message)
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body"))

        try:
            await self._app(scope, receive, tell)
        except (ClientDisconnect, asyncio.CancelledError, Exception) as error:
            problem = self._problem(error, request_id)
            if not status:
                await self._respond(scope, problem)(scope, receive, tell)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            seconds = time.perf_counter() - start
            self._record(scope, request_id, status if complete else CLIENT_LEFT, seconds)

    def _problem(self, error: BaseException, request_id: str) -> Problem:
        """The problem to answer with, if the answer has not begun."""
        if isinstance(error, asyncio.CancelledError):
            return problem_of(UnavailableError("the server stopped before the answer was ready"))
        if isinstance(error, ClientDisconnect):
            return Problem(CLIENT_LEFT, "the client has left", "client_left")
        assert isinstance(error, Exception)
        _log_error(error, request_id)
        return problem_of(error)

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
    """Log an error's type and place, not its message, which may hold a text."""
    places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-5:]]
    LOG.error("unexpected error", extra={"fields": {"id": request_id, "error": type(error).__name__, "at": places}})
