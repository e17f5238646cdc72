"""A server that stops resets nobody: by which doors a request that a client could send was lost, each with its test.

    a handshake that the kernel completes after the last accept     test_a_connection_cannot_be_completed_...
    a connection in the backlog when the port closes                test_what_the_kernel_has_completed_...
    a kept-alive connection whose next request is not read yet      test_a_request_that_has_come[unread]
    a kept-alive connection with a piece of its next request        test_a_request_that_has_come[in part]
    a connection that has not sent its first request                test_a_first_request_after_the_port_closed_...
    a request in the queue or the engine      test_server_faults: test_sigterm_under_load_...
    an engine that does not end, a client that does not read        test_server_lifecycle

Nothing here is timed; `test_server_faults` has all of it at once, under load.
"""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.contract.serving import Running, running
from tests.fault.test_server_faults import HEAD

from nestling.server import process
from nestling.server.http import last_connections
from nestling.server.listening import bound

BODY = json.dumps({"input": "a text"}).encode()
REQUEST = HEAD % len(BODY) + BODY
linux = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's; elsewhere an instant remains")


def connected(port: int, timeout_s: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def answer(client: socket.socket) -> bytes:
    """All that the server sends until it closes the connection; ConnectionResetError where it resets it."""
    with client:
        return b"".join(iter(lambda: client.recv(65_536), b""))


@linux
def test_a_connection_cannot_be_completed_once_new_ones_are_refused() -> None:
    with bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        early = connected(port)
        assert last_connections.refuse_new(listener)
        with pytest.raises(TimeoutError):
            connected(port, timeout_s=0.2)
        [taken] = last_connections.accepted(listener)
        early.sendall(b"hello")
        taken.settimeout(20)
        assert taken.recv(5) == b"hello"
        early.close()
        taken.close()
    with pytest.raises(ConnectionRefusedError):
        connected(port)


@linux
def test_no_client_gets_in_between_the_last_accept_and_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """At that very instant: it did get in, sent its request and was reset."""
    tried = list[str]()
    close = asyncio.base_events.Server.close

    def closing(server: asyncio.base_events.Server) -> None:
        for one in server.sockets:
            try:
                connected(one.getsockname()[1], timeout_s=0.2).close()
                tried.append("connected")
            except TimeoutError:
                tried.append("not answered")
        close(server)

    monkeypatch.setattr(asyncio.base_events.Server, "close", closing)
    with running():
        pass
    assert tried == ["not answered"]


def test_what_the_kernel_has_completed_is_accepted_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clients, refuse_new = list[socket.socket](), last_connections.refuse_new

    def refusing(listener: socket.socket) -> bool:
        """On the loop, so that nothing is accepted meanwhile."""
        clients.extend(connected(listener.getsockname()[1]) for _ in range(20))
        for one in clients:
            one.sendall(REQUEST)
        return refuse_new(listener)

    monkeypatch.setattr(last_connections, "refuse_new", refusing)
    monkeypatch.setattr(process, "HANDSHAKE_S", 0)
    with running():
        pass
    assert [answer(one)[:12] for one in clients] == [b"HTTP/1.1 200"] * 20


@pytest.mark.parametrize("sent", [len(REQUEST), 30], ids=["unread", "in part"])
def test_a_request_that_has_come_is_answered_though_its_connection_was_idle(sent: int) -> None:
    with running() as server:
        client = connected(server.port)
        client.sendall(REQUEST)
        head = client.recv(65_536)
        while b"usage" not in head:
            head += client.recv(65_536)
        [protocol] = server.server.server_state.connections

        def shut() -> None:
            client.sendall(REQUEST[:sent])
            protocol.shutdown()

        on_loop(server, shut)
        client.sendall(REQUEST[sent:])
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_an_idle_connection_is_closed_at_once() -> None:
    with running() as server:
        client = connected(server.port)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while b"ok" not in client.recv(65_536):
            pass
        [protocol] = server.server.server_state.connections
        on_loop(server, protocol.shutdown)
        assert answer(client) == b""


def test_a_first_request_after_the_port_closed_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    close = asyncio.base_events.Server.close

    def closing(server: asyncio.base_events.Server) -> None:
        close(server)
        closed.set()

    monkeypatch.setattr(asyncio.base_events.Server, "close", closing)
    with running() as server:
        client = connected(server.port)
        server.server.should_exit = True
        assert closed.wait(20)
        client.sendall(REQUEST)
        assert answer(client).startswith(b"HTTP/1.1 200")


def on_loop(server: Running, act: Callable[[], Any]) -> None:
    """Call it on the server's event loop and wait until it has been."""

    async def do() -> None:
        act()

    asyncio.run_coroutine_threadsafe(do(), server.loop).result(20)
