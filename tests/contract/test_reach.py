"""What surrounds the server: keys and aliases read again, Unix sockets, sockets from systemd.

Doors by which a key or an alias could be the old one: a file that changed, one that cannot be read any more, one whose
new content is wrong (all of it stays as it was). Doors by which a socket could be lost: a file left behind by a kill,
a file that is no socket, a server that is alive, a socket that belongs to systemd.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

SERVE = """
import sys
from functools import partial
from tests.contract.serving import loader
from nestling.server.process import run
from nestling.server.settings import read_settings
flags = {"model": ["fake"], "port": 0, **dict(one.split("=", 1) for one in sys.argv[1:])}
run(read_settings(flags, {}), loader(), reread=partial(read_settings, flags, {}))
"""
ROOT = Path(__file__).parents[2]
BODY = {"input": "a"}


@dataclass(frozen=True)
class Child:
    """A server in a process of its own, with a stand-in for the model."""

    process: subprocess.Popen[str]
    url: str

    def line(self, event: str) -> str:
        """The next line of its log with this event."""
        assert self.process.stderr
        return next(line for line in self.process.stderr if f'"event": "{event}"' in line)


def started(*flags: str, before: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [*before, sys.executable, "-c", SERVE, *flags]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environ, cwd=ROOT, **pipes, **more)


@contextmanager
def child(*flags: str, before: Sequence[str] = (), code: int = 0, **more: Any) -> Iterator[Child]:
    with started(*flags, before=before, **more) as process:
        try:
            assert process.stdout
            ready = process.stdout.readline()
            assert "serves fake" in ready, process.stderr.read() if process.stderr else ""
            found = re.search(r"http://[\d.:]+", ready)
            yield Child(process, found[0] if found else "http://localhost")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == code
        finally:
            process.kill()


def status(url: str, *, key: str = "", model: str = "fake") -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/embeddings", json={**BODY, "model": model}, headers=headers, timeout=20).status_code


def test_a_hangup_takes_the_keys_and_aliases_that_the_files_have_now(tmp_path: Path) -> None:
    keys, aliases = tmp_path / "keys", tmp_path / "aliases"
    keys.write_text("old\n")
    aliases.write_text("first\nsecond=fake/code\n")
    with child(f"api_key_file={keys}", f"alias_file={aliases}") as server:
        assert [status(server.url, key="old", model=name) for name in ("first", "second")] == [200, 200]
        keys.write_text("new\nother\n")
        aliases.write_text("third\n")
        server.process.send_signal(signal.SIGHUP)
        assert '"keys": 2, "aliases": 1' in server.line("reloaded")
        assert [status(server.url, key=key) for key in ("old", "new", "other")] == [401, 200, 200]
        assert [status(server.url, key="new", model=name) for name in ("first", "third")] == [404, 200]


@pytest.mark.parametrize(("file", "content"), [("aliases", "x=absent"), ("keys", "\n"), ("keys", None)])
def test_what_cannot_be_read_leaves_everything_as_it_was(tmp_path: Path, file: str, content: str | None) -> None:
    (tmp_path / "keys").write_text("old\n")
    (tmp_path / "aliases").write_text("first\n")
    with child(f"api_key_file={tmp_path / 'keys'}", f"alias_file={tmp_path / 'aliases'}") as server:
        (tmp_path / "keys").write_text("new\n")
        (tmp_path / "aliases").write_text("second\n")
        if content is None:
            (tmp_path / file).unlink()
        else:
            (tmp_path / file).write_text(content)
        server.process.send_signal(signal.SIGHUP)
        assert "absent" in (line := server.line("not reloaded")) or "api-key-file" in line
        assert [status(server.url, key=key, model="first") for key in ("old", "new")] == [200, 401]


def test_with_nothing_to_read_again_a_hangup_ends_the_server_as_any_program() -> None:
    own = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child inherits what is ignored, as under nohup
    try:
        with child(code=-signal.SIGHUP) as server:
            server.process.send_signal(signal.SIGHUP)
            server.process.wait(20)
    finally:
        signal.signal(signal.SIGHUP, own)


def over(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.example", timeout=20)


def test_a_unix_socket_is_served_shown_as_curl_takes_it_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with child(f"uds={path}") as server:
        assert server.process.stdout
        proposed = server.process.stdout.readline()
        answer = subprocess.run(["bash", "-c", proposed], capture_output=True, text=True, check=True).stdout
        assert '"object":"list"' in answer
        with over(path) as client:  # whatever name it has: no web page gets to a Unix socket
            assert client.post("/v1/embeddings", json=BODY).status_code == 200
    assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with child(f"uds={path}"), over(path) as client:
        assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("there", ["a file", "a folder", "a server", "nothing", "too long"])
def test_what_else_stands_in_its_place_is_left_alone(tmp_path: Path, there: str) -> None:
    path, other = tmp_path / "s", socket.socket(socket.AF_UNIX)
    if there == "a file":
        path.write_text("precious")
    elif there == "a folder":
        path.mkdir()
    elif there == "a server":
        other.bind(str(path))
        other.listen()
    else:
        path = tmp_path / ("none/s" if there == "nothing" else "s" * 200)
    with other, started(f"uds={path}") as process:
        _, said = process.communicate(timeout=20)
    assert f"--uds={path}: cannot listen there: " in said.splitlines()[-1]
    assert process.returncode == 1
    assert there != "a file" or path.read_text() == "precious"


HAND_OVER = 'LISTEN_PID=$$ LISTEN_FDS={count} exec "$@" 3<&{fd}'


@contextmanager
def listener(family: socket.AddressFamily, place: Any) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.bind(place)
        one.listen(16)
        yield one


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_socket_of_systemds_is_served_and_outlives_the_server(tmp_path: Path, kind: str) -> None:
    family, place = (socket.AF_INET, ("127.0.0.1", 0)) if kind == "tcp" else (socket.AF_UNIX, str(tmp_path / "s"))
    with listener(family, place) as theirs:
        for _ in range(2):
            with socket.socket(family, socket.SOCK_STREAM) as early:  # it waits while the server starts
                early.settimeout(20)
                early.connect(theirs.getsockname())
                early.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                before = ["bash", "-c", HAND_OVER.format(count=1, fd=theirs.fileno()), "bash"]
                with child(before=before, pass_fds=[theirs.fileno()]):
                    assert early.recv(100).startswith(b"HTTP/1.1 ")
        assert kind == "tcp" or Path(str(place)).exists()


def test_more_than_one_socket_is_refused() -> None:
    with listener(socket.AF_INET, ("127.0.0.1", 0)) as theirs:
        before = ["bash", "-c", HAND_OVER.format(count=2, fd=theirs.fileno()), "bash"]
        with started(before=before, pass_fds=[theirs.fileno()]) as process:
            _, said = process.communicate(timeout=20)
    assert "LISTEN_FDS=2: expected 1" in said.splitlines()[-1]
