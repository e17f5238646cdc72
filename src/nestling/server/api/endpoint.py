"""A dialect's route as an ASGI application: admission, body, handler, and the answer sent as the client takes it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from nestling.server.api.dialect import Call
from nestling.server.api.routing import Spoken, spoken_for
from nestling.server.core.service import Service
from nestling.server.http.limits import Bodies, admitted
from nestling.server.http.problems import CLIENT_LEFT

WARNING = b"x-nestling-warning"
_END: Message = {"type": "http.response.body", "body": b""}
"""By itself, because it is sent only when all before it has gone: then the last byte has left."""


class Endpoint:
    """One path, spoken by one dialect or by several that the body tells apart.

    What a request holds (its place, its vectors) is given back once its last byte has left.
    """

    def __init__(self, spoken: Sequence[Spoken], service: Service, bodies: Bodies) -> None:
        self._spoken, self._service, self._bodies = spoken, service, bodies
        self._images = any(one.route.images for one in spoken)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope, receive)
        if self._spoken[0].route.body is None:
            await self._answered(request, send, b"")
            return
        with admitted(self._service):
            async with AsyncExitStack() as held:
                has_images = self._images and self._service.takes_images
                large = self._service.settings.max_image_body_bytes if has_images else None
                body = await held.enter_async_context(self._bodies.read(request, most=large))
                await self._service.ready()
                await self._answered(request, send, body, read=held)

    async def _answered(self, request: Request, send: Send, body: bytes, read: AsyncExitStack | None = None) -> None:
        gone = asyncio.ensure_future(_left(request))
        try:
            call = Call(self._service, body, request.path_params)
            chosen = await call.run(spoken_for, self._spoken, body)
            request.scope["dialect"] = chosen.dialect
            if not chosen.route.images:
                self._bodies.check(body)  # read for another dialect's images
            async with aclosing(chosen.route.handler(call)) as pieces:
                first = await _unless(gone, pieces)
                if read:
                    await read.aclose()  # the body has been used
                if first is None:
                    await Response(status_code=CLIENT_LEFT)(request.scope, request.receive, send)
                    return
                headers = [(b"content-type", b"application/json"), *_warning(call.warnings)]
                await self._send(first, pieces, send, gone, headers)
        finally:
            gone.cancel()

    async def _send(
        self,
        piece: bytes,
        pieces: AsyncGenerator[bytes, None],
        send: Send,
        gone: asyncio.Future[Any],
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        spent = -time.perf_counter()
        following = await anext(pieces, None)
        if following is None:
            headers.append((b"content-length", b"%d" % len(piece)))
        spent += time.perf_counter()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        while following is not None:
            await send({"type": "http.response.body", "body": following, "more_body": True})
            if gone.done():
                return  # nobody takes the rest
            await asyncio.sleep(0)  # sending to a fast client does not suspend; others have their turn here
            spent -= time.perf_counter()
            following = await anext(pieces, None)
            spent += time.perf_counter()
        await send(_END)
        self._service.metrics.stage.labels("serialize").observe(spent)


def _warning(warnings: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
    """A header for what a client should know and its answer has no field for."""
    if warnings:
        yield WARNING, "; ".join(warnings).encode("ascii", "replace")


async def _left(request: Request) -> None:
    """Wait until the client has left; a body that nobody asked for is thrown away meanwhile."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future[Any], pieces: AsyncGenerator[bytes, None]) -> bytes | None:
    """The first piece; None, with its making cancelled, when the client leaves before."""
    making: asyncio.Future[Any] = asyncio.ensure_future(anext(pieces))
    try:
        await asyncio.wait({making, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await making if making.done() else None
    finally:
        making.cancel()
        if not making.done():
            await asyncio.wait({making})
