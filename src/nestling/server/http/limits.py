"""Bounds what the server takes in at once: bytes and time of bodies, and requests in flight.

A body is counted while it arrives, so that a chunked one without a length is bounded too. Compressed ones are refused.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import Request

from nestling.server.core.refusals import BusyError
from nestling.server.core.service import Service
from nestling.server.http.problems import Problem

BODY_TIMEOUT_S = 30.0
HELD_BODIES = 64
"""Most bodies of full size held in memory at once."""
DISCARDED_BODIES = 16
"""Bodies' worth of a refused upload that are still read, so that its client gets the answer, not a broken pipe."""
DISCARD_S = 2.0
_CLOSE = {"connection": "close"}


class Bodies:
    """Reads request bodies within a limit for each and for all together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0

    @asynccontextmanager
    async def read(self, request: Request, *, most: int | None = None) -> AsyncIterator[bytes]:
        """The body, counted as held until the block ends; `most` raises the usual limit on its bytes.

        Problem 408, 413 or 415; BusyError.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "Content-Encoding: send the JSON uncompressed", "unsupported_encoding")
        parts = bytearray()
        try:
            await self._collect(request, parts, max(most or 0, self._limit))
            yield bytes(parts)
        finally:
            self._held -= len(parts)

    def check(self, body: bytes) -> None:
        """Problem 413 for a body beyond the usual limit."""
        if len(body) > self._limit:
            raise _too_large(self._limit)

    async def _collect(self, request: Request, parts: bytearray, most: int) -> None:
        declared = request.headers.get("content-length", "0")
        if int(declared if declared.isdigit() else "0") > most:
            await self._refuse(request, most)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    if len(parts) + len(chunk) > most:
                        await self._refuse(request, most)
                    if self._held + len(chunk) > max(HELD_BODIES * self._limit, most):
                        raise BusyError("too many bodies at once")
                    self._held += len(chunk)
                    parts += chunk
        except TimeoutError:
            late = f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s"
            raise Problem(408, late, "timeout", headers=_CLOSE) from None

    async def _refuse(self, request: Request, most: int) -> None:
        if "expect" not in request.headers:
            await self._discard(request, DISCARDED_BODIES * self._limit + most)
        raise _too_large(most, _CLOSE)

    async def _discard(self, request: Request, left: int) -> None:
        try:
            async with asyncio.timeout(DISCARD_S):
                while left > 0:
                    message = await request.receive()
                    left -= len(message.get("body", b"")) or 1
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            return


def _too_large(most: int, headers: Mapping[str, str] | None = None) -> Problem:
    message = f"body: more than {most} bytes, which is this server's limit"
    return Problem(413, message, "request_too_large", headers=headers or {})


@contextmanager
def admitted(service: Service) -> Iterator[None]:
    """Count a request as in flight during the block; BusyError at the limit."""
    most = service.settings.max_in_flight
    if service.in_flight >= most:
        service.metrics.rejected.labels("in_flight").inc()
        raise BusyError(f"{most} requests are in flight, which is this server's limit")
    service.in_flight += 1
    try:
        yield
    finally:
        service.in_flight -= 1
