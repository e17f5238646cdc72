"""What stands before the routes: bounded bodies, a bounded number of requests, keys, and one log line a request.

Pure ASGI. A body is counted while it arrives, so that a chunked one without a length is bounded too; a compressed one
is refused. Keys are compared in constant time and never written anywhere.
"""

import asyncio
import hmac
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.server.core.service import Service
from nestling.server.http.problems import Problem, busy, problem_of, too_large

LOG = logging.getLogger("nestling.server")
BODY_TIMEOUT_S = 30.0
HELD_BODIES = 64
"""Bodies of the full size that are held in memory at once."""
DISCARDED_BODIES = 16
"""Bodies' worth of a refused upload that is still read, so that its client sees the answer, not a broken pipe."""
DISCARD_S = 2.0
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})


def respond(problem: Problem) -> Response:
    """A problem as a response."""
    return Response(problem.body(), problem.status, dict(problem.headers), "application/json")


class Bodies:
    """Reads request bodies within a limit for each and for all together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, counted as held until the block ends. Problem 408, 413, 415 or 429."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "Content-Encoding: send the JSON uncompressed", "unsupported_encoding")
        parts = bytearray()
        try:
            await self._collect(request, parts)
            yield bytes(parts)
        finally:
            self._held -= len(parts)

    async def _collect(self, request: Request, parts: bytearray) -> None:
        declared = request.headers.get("content-length", "0")
        if int(declared if declared.isdigit() else "0") > self._limit:
            await self._refuse(request)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    if len(parts) + len(chunk) > self._limit:
                        await self._refuse(request)
                    if self._held + len(chunk) > HELD_BODIES * self._limit:
                        raise busy("too many bodies at once")
                    self._held += len(chunk)
                    parts += chunk
        except TimeoutError:
            raise Problem(
                408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", "timeout", headers=_CLOSE
            ) from None

    async def _refuse(self, request: Request) -> None:
        if "expect" not in request.headers:
            await self._discard(request)
        problem = too_large(f"body: more than {self._limit} bytes, which is this server's limit")
        raise Problem(problem.status, problem.message, problem.code, headers=_CLOSE)

    async def _discard(self, request: Request) -> None:
        left = DISCARDED_BODIES * self._limit
        try:
            async with asyncio.timeout(DISCARD_S):
                while left > 0:
                    message = await request.receive()
                    left -= len(message.get("body", b"")) or 1
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            return


_CLOSE = {"connection": "close"}
_NO_KEY = Problem(
    401,
    "Authorization: Bearer and one of this server's keys is expected",
    "invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


@contextmanager
def admitted(service: Service) -> Iterator[None]:
    """Hold one of the places for requests in flight; Problem 429 when all are taken."""
    most = service.settings.max_in_flight
    if service.in_flight >= most:
        service.metrics.rejected.add("in_flight")
        raise busy(f"{most} requests are in flight, which is this server's limit")
    service.in_flight += 1
    try:
        yield
    finally:
        service.in_flight -= 1


async def unless_gone(request: Request, work: asyncio.Task[list[bytes]]) -> list[bytes] | None:
    """The work's result; None, with the work cancelled, when the client leaves before it is done."""
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        gone.cancel()
        work.cancel()


class Keys:
    """Lets a request through that bears one of the keys, or asks for something that needs none."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode("utf-8") for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self._app(scope, receive, send)
            return
        await respond(_NO_KEY)(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        found = [hmac.compare_digest(key.strip(), known) for known in self._keys]  # all of them: no early end to time
        return scheme.lower() == b"bearer" and any(found)


class Journal:
    """Names each request, logs and counts its end, and turns an unexpected exception into a plain 500."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, name, status = time.perf_counter(), uuid.uuid4().hex[:16], 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(self._headers(name))
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except Exception as error:  # noqa: BLE001 - the last place where it can be answered
            _log_error(error, name)
            if not status:
                await respond(problem_of(error))(scope, receive, tell)
        self._record(scope, name, status, time.perf_counter() - start)

    def _headers(self, name: str) -> list[tuple[bytes, bytes]]:
        closing = [(b"connection", b"close")] if self._service.draining else []
        return [(b"x-request-id", name.encode()), *closing]

    def _record(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._service.metrics.requests.add(path, str(status))
        self._service.metrics.duration.observe(seconds, path)
        if path not in ("/health", "/ready", "/metrics"):
            facts = {
                "id": name,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(seconds * 1000, 1),
            }
            LOG.info("request", extra={"fields": facts})


def _log_error(error: Exception, name: str) -> None:
    """Kind and place of an error; its message may hold a text."""
    places = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-5:]]
    LOG.error("unexpected", extra={"fields": {"id": name, "error": type(error).__name__, "at": places}})
