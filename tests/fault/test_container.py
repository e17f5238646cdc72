"""A server as in a container: limits on memory and processors, no privileges, no home, a cache that is only read.

One run: it starts, is loaded by several clients, is told to stop under load, and started again on the same cache.
Every machine runs it; what a machine does not allow is replaced, never left out:

    memory and processors   a control group below our own with both limits, where groups can be made here; else a
                            group's files that the server is shown in place of the kernel's, and an address space
                            (RLIMIT_AS) in both cases
    the user                nobody, where root runs the test and others may read the interpreter; else our own user,
                            stripped of every capability
    the cache               modes without a right to write; no HOME, no TMPDIR, an environment of four variables
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.control_groups import Limits, limited
from tests.fault.test_read_only import _without_privileges

from nestling.models import local
from nestling.server.core.loading import model_cost

NOBODY = 65_534
ADDRESS_SPACE = 64 << 30
"""A bound that an honest process never meets, and a runaway does."""
CLIENTS = 6
TEXTS = ["a beach", "a tax form", "海滩", "def read(path): ..."]
PROGRAM = """
import sys
from pathlib import Path
sys.stdin.readline()  # until it is in its group
from nestling._util import cpu
if sys.argv[1]:
    cpu.usable_threads.__defaults__ = cpu.usable_memory.__defaults__ = (Path(sys.argv[1]),)
del sys.argv[1]
from nestling.cli import main
main()
"""


@pytest.fixture(scope="module")
def memory_limit(starter: Path) -> int:
    """Half of it, the server's budget, has room for one model and not for two."""
    return 2 * int(1.5 * model_cost(str(starter)))


@pytest.fixture(scope="module")
def starter(cache_folder: Path) -> Path:
    """The retrieval and the code model, built."""
    local.resolve("starter-code")
    return local.resolve("starter-retrieval")


@pytest.fixture(scope="module")
def cache(starter: Path) -> Iterator[Path]:
    """A cache that nobody may write, where anybody may read it (pytest's own folders are its user's alone)."""
    place = Path(tempfile.mkdtemp(prefix="nestling-container-"))
    shutil.copytree(starter.parent, place / "cache" / "models" / "starter")
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield place / "cache"
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def limits(memory_limit: int) -> Iterator[Limits]:
    with limited(memory_limit) as found:
        yield found


def _may_be_nobody() -> bool:
    """True where root can become nobody and nobody can still run this interpreter and read the sources."""
    if os.geteuid() != 0:
        return False
    check = [sys.executable, "-c", "import nestling, numpy, openvino, nestling_data"]
    environ = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            check, user=NOBODY, group=NOBODY, extra_groups=[], env=environ, cwd="/", capture_output=True
        )
    except OSError:
        return False
    return done.returncode == 0


class Container:
    """Starts servers."""

    def __init__(self, cache: Path, limits: Limits) -> None:
        self._limits = limits
        self.nobody = _may_be_nobody()
        self._environ = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NESTLING_CACHE": str(cache),
        }

    @contextmanager
    def server(self) -> Iterator[tuple["subprocess.Popen[str]", str]]:
        """`nestling serve`, ready, and its address; it must end in the block."""
        command = [sys.executable, "-c", PROGRAM, str(self._limits.shown or ""), "serve", "--port", "0"]
        with self.process(command) as child:
            assert child.stdout
            assert child.stderr
            line = next((line for line in iter(child.stdout.readline, "") if "http://" in line), "")
            if not line:
                raise AssertionError(child.stderr.read())
            yield child, "http://" + line.partition("http://")[2].split()[0].strip('"/,}')

    @contextmanager
    def process(self, command: list[str]) -> Iterator["subprocess.Popen[str]"]:
        """A process in the container, that begins when it has read a line."""
        more: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        if self.nobody:
            more |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        more |= {"env": self._environ, "cwd": "/", "text": True, "preexec_fn": self._bound}
        with subprocess.Popen(command, **more) as child:
            try:
                self._limits.enter(child.pid)
                assert child.stdin
                child.stdin.write("\n")
                child.stdin.flush()
                yield child
            finally:
                child.kill()

    def _bound(self) -> None:
        """In the child, when it is nobody."""
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        if not self.nobody:
            _without_privileges()


def embedded(client: httpx.Client, url: str, model: str, text: str) -> bytes:
    answer = client.post(f"{url}/v1/embeddings", json={"model": model, "input": text, "encoding_format": "base64"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["embedding"]).encode()


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def until_refused(url: str, turn: int) -> list[int]:
    """Status codes of requests one after another, until the port is closed."""
    codes: list[int] = []
    with httpx.Client(timeout=60) as session:
        while True:
            body = {"model": "starter", "input": TEXTS[turn % len(TEXTS) :]}
            try:
                codes.append(session.post(f"{url}/v1/embeddings", json=body).status_code)
            except httpx.ConnectError:
                return codes


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(one): (one.stat().st_ino, one.stat().st_mtime_ns) for one in folder.rglob("*")}


def test_a_container_serves_is_loaded_drained_and_restarted(cache: Path, limits: Limits, memory_limit: int) -> None:
    container, before = Container(cache, limits), state(cache)
    answers: list[list[bytes]] = []
    for _ in range(2):
        with ThreadPoolExecutor(CLIENTS + 1) as pool, container.server() as (child, url):
            assert child.stderr
            log = pool.submit(child.stderr.read)  # as it is written: a full pipe would stop the server
            check_identity(child.pid, container, limits)
            with httpx.Client(timeout=60) as client:
                answers.append([embedded(client, url, "starter", text) for text in TEXTS])
                embedded(client, url, "starter-code", TEXTS[3])
                assert metric(url, "nestling_models_loaded") == 1, "two do not fit into half of the container's memory"
                assert metric(url, "nestling_models_bytes") <= memory_limit / 2
                embedded(client, url, "starter", TEXTS[0])
            clients = [pool.submit(until_refused, url, turn) for turn in range(CLIENTS)]
            while metric(url, 'nestling_requests_total{path="/v1/embeddings",status="200"}') < 8 * CLIENTS:
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0, log.result()
            codes = [code for one in clients for code in one.result()]
            assert set(codes) == {200}
            said = [json.loads(line) for line in log.result().splitlines()]
        assert {"model loaded", "model unloaded", "request"} <= {line["event"] for line in said}
        assert not [line for line in said if line["level"] != "info"]
    assert answers[0] == answers[1], "the same bytes from the same cache"
    assert state(cache) == before, "nothing was written"


def check_identity(pid: int, container: Container, limits: Limits) -> None:
    """The server is who and where it is meant to be."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert not container.nobody or set(status["Uid"].split()) == {str(NOBODY)}
    assert int(status["CapEff"], 16) == 0
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert all(group.name in groups for group in limits.groups)


def test_the_limits_are_what_a_process_in_there_reads(cache: Path, limits: Limits, memory_limit: int) -> None:
    script = (
        "import sys; sys.stdin.readline(); from pathlib import Path; from nestling._util import cpu;"
        " root = Path(sys.argv[1] or '/'); print(cpu.usable_memory(root), cpu.usable_threads(root))"
    )
    with Container(cache, limits).process([sys.executable, "-c", script, str(limits.shown or "")]) as child:
        assert child.stdout
        memory, threads = map(int, child.stdout.read().split())
    assert threads == 1
    assert memory_limit - resource.getpagesize() < memory <= memory_limit, "the kernel rounds to pages"
