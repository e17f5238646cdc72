"""The socket that the server listens on: one that systemd hands over, a Unix socket, or an address and a port."""

import errno
import os
import socket
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

from nestling.errors import NestlingError
from nestling.server.settings import ServeSettings

FIRST_FD = 3
"""The first file descriptor that systemd hands over (sd_listen_fds(3))."""
BACKLOG = 2048


class HandedOver(socket.socket):
    """A socket of systemd's, which keeps listening after this process has ended."""


@contextmanager
def listening(settings: ServeSettings, environ: MutableMapping[str, str] = os.environ) -> Iterator[socket.socket]:
    """The listening socket, closed afterwards; NestlingError when it cannot be opened."""
    if handed := handed_over(environ):
        with handed:
            yield handed
    elif settings.uds:
        with bound_at(settings.uds) as listener, _removed_afterwards(settings.uds):
            yield listener
    else:
        with bound(settings.host, settings.port) as listener:
            yield listener


def handed_over(environ: MutableMapping[str, str]) -> HandedOver | None:
    """The socket of systemd's socket activation; None if this process was started without one.

    Its variables are removed from `environ`, so that no child process inherits them.
    """
    said = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if said["LISTEN_PID"] != str(os.getpid()):
        return None
    if said["LISTEN_FDS"] != "1":
        raise NestlingError(f"LISTEN_FDS={said['LISTEN_FDS']}: expected 1, one ListenStream= in the socket unit")
    os.set_inheritable(FIRST_FD, False)  # noqa: FBT003 - the system's own interface
    listener = HandedOver(fileno=FIRST_FD)
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise NestlingError("LISTEN_FDS: expected a listening stream socket, ListenStream= with Accept=no")
    listener.setblocking(False)  # noqa: FBT003 - the socket's own interface
    return listener


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; NestlingError when that address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm (40 ms per answer) only if the protocol is explicit
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        return _listens(listener)
    except OSError as error:
        listener.close()
        hint = "another program has it; choose one with --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise NestlingError(f"{host}:{port}: cannot listen there: {hint}") from None


def bound_at(path: Path) -> socket.socket:
    """A listening Unix socket; one that a killed server left behind is replaced, any other file is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_behind(path)
        listener.bind(str(path))
        return _listens(listener)
    except OSError as error:
        listener.close()
        hint = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise NestlingError(f"--uds={path}: cannot listen there: {hint}") from None


@contextmanager
def _removed_afterwards(path: Path) -> Iterator[None]:
    """Remove the socket's file at the end, unless another program has replaced it."""
    made = path.stat().st_ino
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if path.stat().st_ino == made:
                path.unlink()


def _listens(listener: socket.socket) -> socket.socket:
    listener.listen(BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - the socket's own interface
    return listener


def _remove_left_behind(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
