"""One HTTP/1.1 connection, with deadlines for sending a request head and for reading an answer."""

import asyncio
import select
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
"""Seconds for a connection, new or kept alive, to send a whole request head."""
TAKE_TIMEOUT_S = 120.0
"""Seconds for a client to read the rest of its answer, once it has fallen behind."""


class _Deadline:
    """A timer that calls `end` unless it is lifted in time."""

    _timer: asyncio.TimerHandle | None = None

    def set(self, loop: asyncio.AbstractEventLoop, seconds: float, end: Callable[[], None]) -> None:
        """Start it, unless it runs already."""
        self._timer = self._timer or loop.call_later(seconds, end)

    def lift(self) -> None:
        """Stop it."""
        if self._timer:
            self._timer.cancel()
        self._timer = None


class PunctualProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which also ends connections that are too slow to send a head or to take an answer.

    Only the piece being sent is buffered: the next one is made when the kernel has taken it.
    """

    _is_last = False
    """True once the connection closes after its present or next answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio: a new connection."""
        super().connection_made(transport)
        self._head, self._take = _Deadline(), _Deadline()
        transport.set_write_buffer_limits(0)
        self._head.set(self.loop, HEAD_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        super().data_received(data)
        if self._is_last and self.cycle is not None:
            self.cycle.keep_alive = False
        if self.cycle is not None and not self.cycle.response_complete:
            self._head.lift()
        else:
            self._head.set(self.loop, HEAD_TIMEOUT_S, self.transport.abort)

    def shutdown(self) -> None:
        """uvicorn: close if idle. A request that has begun to arrive, read or not, is answered first."""
        if not (self.conn.trailing_data[0] or self._has_unread()):
            super().shutdown()
        self._is_last = True

    def _has_unread(self) -> bool:
        """True if bytes wait in the kernel: closing would discard them and reset the connection."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def pause_writing(self) -> None:
        """asyncio: the client has not taken all that was sent."""
        super().pause_writing()
        self._take.set(self.loop, TAKE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """asyncio: it has now; the deadline stays for the rest of the answer."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._take.lift()

    def on_response_complete(self) -> None:
        """uvicorn: the last byte has been given to the transport."""
        super().on_response_complete()
        if not self.transport.get_write_buffer_size():
            self._take.lift()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is over."""
        self._head.lift()
        self._take.lift()
        super().connection_lost(exc)
