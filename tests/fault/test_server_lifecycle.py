"""Answers that nobody takes, starts that fail and stops that must end, by each door.

- Unread answers: vectors, token vectors, rankings that are computed; what is small is answered beside them.
- A start: a load or a self-test that raises anything at all ends it, with a message and code 1.
- A stop: a batch that does not end, and clients that wait for it; `--drain-s` bounds both and the log says so.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from tests.contract.serving import FakeEngine, Running, fake_embedder, running, settings
from tests.fault.test_server_faults import HEAD, _until

from nestling.errors import EngineError, NestlingError
from nestling.models.embedder import Embedder
from nestling.server import process
from nestling.server.core import answer_budget
from nestling.server.core.answer_budget import AnswerBudget
from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError

ROW = 64 * 4
PATIENCE_S = 200.0
"""Of a test that asks for 64 x 20,000 vectors, on a machine that has much else to do."""


def send(server: Running, body: dict[str, Any]) -> socket.socket:
    raw = json.dumps(body).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(HEAD % len(raw) + raw)
    return client


def test_clients_that_never_read_hold_no_more_vectors_than_the_budget_and_others_are_served() -> None:
    """64 clients, each with an answer of half a MiB in vectors and more in JSON than a socket takes."""
    with running(max_answer_mb=4, max_inputs=20_000, max_queue_tokens=10**8) as server:
        lazy = [send(server, {"input": ["a"] * 20_000}) for _ in range(64)]
        assert _until(lambda: server.service.metrics.value("nestling_rejected_total", reason="answers") > 0, PATIENCE_S)
        most = 4 << 20
        assert 0 < server.service.answers.held_bytes <= max(most, 20_000 * ROW)
        assert server.service.metrics.value("nestling_answer_bytes") == server.service.answers.held_bytes
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a query"}, timeout=PATIENCE_S)
        assert answer.status_code == 200
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": ["a"] * 20_000}, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
        assert "retry-after" in answer.headers
        for client in lazy:
            client.close()
        assert _until(lambda: server.service.answers.held_bytes == 0, PATIENCE_S)
        assert _until(lambda: server.service.in_flight == 0, PATIENCE_S)


def test_an_answer_holds_its_bytes_until_it_has_left_and_one_alone_may_be_larger() -> None:
    budget = AnswerBudget(2 * answer_budget.SMALL, Metrics())
    large = 3 * answer_budget.SMALL
    with budget.held(large):
        assert budget.held_bytes == large
        with pytest.raises(BusyError), budget.held(answer_budget.SMALL + 1):
            pass
        with budget.held(answer_budget.SMALL):
            assert budget.held_bytes == large
    assert budget.held_bytes == 0
    with pytest.raises(ZeroDivisionError), budget.held(large):
        _ = 1 / 0
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    "error",
    [EngineError("nan"), RuntimeError("no processor"), TypeError("a bug"), MemoryError("much"), OSError("disk")],
)
@pytest.mark.parametrize("stage", ["load", "self-test"])
def test_whatever_a_start_meets_ends_it_with_a_message(error: Exception, stage: str) -> None:
    class Broken(FakeEngine):
        def pool(self, *_: Any, **__: Any) -> Any:
            raise error

        token_states = pool

    def load(_reference: str) -> Embedder:
        if stage == "load":
            raise error
        return fake_embedder(engine=Broken())

    with pytest.raises(NestlingError, match=str(error)):
        process.run(settings(), load)


CHILD = """
import sys, threading, time
from tests.contract.serving import FakeEngine, loader, settings
from nestling.server import process
from nestling.server.core.service import Service

class Endless(FakeEngine):
    endless = False
    def pool(self, *args, **more):
        while self.endless:
            time.sleep(0.1)
        return super().pool(*args, **more)
    token_states = FakeEngine.token_states

engine = Endless()
say_ready = process.say_ready
def announce(service, listener):
    engine.endless = True
    print(listener.getsockname()[1], flush=True)
process.Server.__init__.__kwdefaults__["announce"] = announce
process.run(settings(drain_s=int(sys.argv[1])), loader(lambda: engine))
"""
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("drain_s", [0, 1])
def test_a_batch_that_does_not_end_does_not_hold_up_the_stop(drain_s: int) -> None:
    command = [sys.executable, "-c", CHILD, str(drain_s)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRON, **pipes) as child:  # type: ignore[call-overload]
        try:
            port = int(child.stdout.readline())
            waiting = socket.create_connection(("127.0.0.1", port))
            body = b'{"input": "a"}'
            waiting.sendall(HEAD % len(body) + body)
            url = f"http://127.0.0.1:{port}"
            assert _until(lambda: "nestling_in_flight_requests 1.0" in httpx.get(f"{url}/metrics").text)
            child.terminate()
            assert child.wait(20) == 1, "an endless batch would have held it for ever"
            said = [json.loads(line) for line in child.stderr.read().splitlines()]
            waiting.settimeout(5)
            assert waiting.recv(1000).startswith(b"HTTP/1.1 503")
            waiting.close()
        finally:
            child.kill()
    [stopped] = [line for line in said if line["event"] == "stopped before everything was done"]
    assert (stopped["requests"], stopped["still_running"]) == (1, True)
    assert [line["status"] for line in said if line["event"] == "request"] == [503]
