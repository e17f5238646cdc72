"""The server as a process: its socket, its signals, its log, its ready message.

The first SIGTERM or SIGINT drains the server: answers close their connections, then the port is closed, and all
accepted requests finish. A second one ends the process at once.
"""

import asyncio
import json
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from nestling.errors import EngineError, NestlingError
from nestling.server.app import create_app
from nestling.server.core.model_pool import Load
from nestling.server.core.service import Service
from nestling.server.http import last_connections
from nestling.server.http.connection import PunctualProtocol
from nestling.server.listening import HandedOver, listening
from nestling.server.reloading import Reread, reload
from nestling.server.settings import ServeSettings
from nestling.server.telemetry import tracing

LINGER_S = 1.0
"""Seconds between the signal and the closing of the port, in which every answer closes its connection."""
HANDSHAKE_S = 0.2
"""Seconds for handshakes that were in progress when the port began to refuse new ones."""
HEAR_OUT_TURNS, TURN_S = 200, 0.01
"""After it, polls of connections that have not sent a request yet: two seconds, or more on a busy machine that delays
this process, since it delays the clients too."""
LOG = logging.getLogger("nestling.server")


def run(settings: ServeSettings, load: Load | None = None, *, reread: Reread | None = None) -> None:
    """Serve until a signal comes. NestlingError when the port is taken or the models cannot be loaded.

    `reread`: reads the settings again, whose keys and aliases SIGHUP applies.
    """
    app = create_app(settings, load, tracing=tracing())
    _allow_many_sockets()
    with _logging(), listening(settings) as listener:
        server = Server(app, listener, drain_s=settings.drain_s)
        if reread and (settings.api_key_file or settings.alias_file):
            server.on_hangup = partial(reload, app.state.service, app.state.keys, reread)
        server.run(sockets=[listener])
    if server.failure:
        raise server.failure
    if not app.state.service.is_stopped:
        sys.stderr.flush()
        os._exit(1)  # an engine is still computing, and nothing else would end it


def say_ready(service: Service, listener: socket.socket) -> None:
    """Print the server's address and a command to try it."""
    place, flag, url = _address(listener)
    key = " -H 'Authorization: Bearer YOUR-KEY'" if service.settings.api_key else ""
    body = json.dumps({"model": service.catalog.default.name, "input": ["A beautiful sunset over the beach"]})
    names = ", ".join(offer.name for offer in service.catalog.offers)
    lines = [
        f"nestling serves {names} at {place} (Ctrl-C ends it). Try:",
        f"  curl -s {flag}{url}/v1/embeddings -H 'Content-Type: application/json'{key} -d '{body}'",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _address(listener: socket.socket) -> tuple[str, str, str]:
    """The server's address, and curl's arguments for it: a flag, empty for an address and a port, and the URL."""
    if listener.family == socket.AF_UNIX:
        path = listener.getsockname()
        return f"unix:{path}", f"--unix-socket {path} ", "http://localhost"
    host, port = listener.getsockname()[:2]
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - read, not bound
    url = f"http://{anywhere.get(host, f'[{host}]' if ':' in host else host)}:{port}"
    return url, "", url


class Server(uvicorn.Server):
    """uvicorn's server on a bound socket, with a ready message and graceful shutdown.

    `failure`: the error that prevented loading the models, if any.
    """

    def __init__(
        self,
        app: Starlette,
        listener: socket.socket,
        *,
        drain_s: int,
        announce: Callable[[Service, socket.socket], None] = say_ready,
    ) -> None:
        super().__init__(_config(app, drain_s))
        self._service: Service = app.state.service
        self._listener, self._announce, self._drain_s = listener, announce, drain_s
        self._drained_by: float | None = None
        self.failure: NestlingError | None = None
        self.on_hangup: Callable[[], None] | None = None
        """The handler of SIGHUP; None leaves the signal alone."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and load the models in the background."""
        await super().startup(sockets)
        if self.on_hangup:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.on_hangup)
        self._opening = asyncio.create_task(self._open())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the last connections, wait for their requests, and let everything finish."""
        self._opening.cancel()
        end = self._service.stop_by = self._drained_by or time.monotonic() + self._drain_s
        await self._accept_last(end)
        await self._hear_out(end)
        self.config.timeout_graceful_shutdown = max(math.ceil(end - time.monotonic()), 0)
        giving_up = asyncio.get_running_loop().call_later(max(end - time.monotonic(), 0), self._give_up)
        await super().shutdown(sockets)
        giving_up.cancel()

    def _give_up(self) -> None:
        """After the time to drain: requests in progress get an answer that says so."""
        self._service.given_up = self._service.in_flight
        for task in self.server_state.tasks:
            task.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT; the signal is not raised again afterwards, so that a graceful end is exit code 0."""
        if self._service.draining:
            os._exit(128 + sig)
        self._service.draining = True
        self._drained_by = time.monotonic() + self._drain_s
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, min(LINGER_S, self._drain_s), self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def _open(self) -> None:
        try:
            await self._service.ready()
        except NestlingError as error:
            self.failure, self.should_exit = error, True
        except Exception as error:  # noqa: BLE001 - a start that failed must end, whatever it was
            self.failure = EngineError(f"the server cannot start: {type(error).__name__}: {error}")
            self.should_exit = True
        else:
            self._announce(self._service, self._listener)

    async def _accept_last(self, end: float) -> None:
        """Accept connections that the kernel has completed, which closing the port would reset.

        On a socket of systemd's they wait for the next process instead.
        """
        stays = isinstance(self._listener, HandedOver)
        if not stays and last_connections.refuse_new(self._listener):
            await asyncio.sleep(max(min(HANDSHAKE_S, end - time.monotonic()), 0))
        last = [] if stays else last_connections.accepted(self._listener)
        for server in self.servers:
            server.close()
        for connection in last:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    async def _hear_out(self, end: float) -> None:
        """Give connections that have not sent a request yet some time to do so, until `end` at most."""
        for _ in range(HEAR_OUT_TURNS):
            silent = any(getattr(one, "cycle", None) is None for one in self.server_state.connections)
            if not silent or time.monotonic() > end:
                return
            await asyncio.sleep(TURN_S)

    def _protocol(self) -> asyncio.Protocol:
        return PunctualProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _config(app: Starlette, drain_s: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",  # not whichever happens to be installed
        log_config=None,
        log_level="critical",
        access_log=False,
        http=PunctualProtocol,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=drain_s,
    )


def _allow_many_sockets() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if most == resource.RLIM_INFINITY else min(most, 65_536)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class _Lines(logging.Formatter):
    """A log record as a line of JSON: time, level, event and fields, never a text or a key."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **fields})


@contextmanager
def _logging() -> Iterator[None]:
    """Write nestling's log and Python's warnings as lines of JSON to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    sources = [logging.getLogger(name) for name in ("nestling", "py.warnings", "opentelemetry")]
    engines = logging.getLogger("nestling.engine")
    engines.setLevel(logging.WARNING)  # "model loaded" has the engine and why
    engines.handlers.clear()  # the command line's handler, which writes for people
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)  # noqa: FBT003 - the function's own interface
    for one in sources:
        one.addHandler(handler)
    try:
        yield
    finally:
        for one in sources:
            one.removeHandler(handler)
        logging.captureWarnings(False)  # noqa: FBT003
