"""Each row of what a server must withstand, over a real port, with a stand-in model."""

import asyncio
import gzip
import hmac
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.serving import ByteTokenizer, FakeEngine, Ids, Running, loader, running

from nestling.errors import NestlingError
from nestling.server.api.openai import EmbeddingRequest
from nestling.server.http import connection, limits
from nestling.server.listening import bound

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
CLIENT = httpx.Client(timeout=20, verify=False, limits=httpx.Limits(max_keepalive_connections=0))
TEXTS = [f"text number {n} " + "and more " * (n % 10) for n in range(30)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as one:
        yield one


def ask(server: Running, body: Any, **more: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CLIENT.post(f"{server.url}/v1/embeddings", content=content, **more)


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def problem(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return dict(error)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("", "input 0"),
        (" \n\t", "input 0"),
        ([], "input"),
        ([""], "input 0"),
        (None, "input"),
        ([None], "input 0"),
        (["a", None], "input 1"),
        (["a", ["b"]], "input 1"),
        (["a", 1], "input 1"),
        ([["a"]], "input 0"),
        ([[]], "input 0"),
        ([1, "a"], "input 0"),
        ([[1], "a"], "input 1"),
        ([True], "input 0"),
        (7, "input"),
        ({"texts": "a"}, "input"),
        ([{"texts": "a"}], "input 0"),
        ([{"text": "a"}, {"text": 1}], "input 1"),
    ],
)
def test_empty_null_nested_and_mixed_inputs_are_400_naming_the_index(server: Running, value: Any, named: str) -> None:
    answer = ask(server, {"input": value})
    assert answer.status_code == 400
    error = problem(answer)
    assert error["param"] == "input"
    assert named in error["message"]


def test_a_body_without_input_is_400(server: Running) -> None:
    answer = ask(server, {"model": "fake"})
    assert (answer.status_code, problem(answer)["param"]) == (400, "input")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"a"', b'{"input": "\\ud800"}', b'{"input": "\xff\xfe"}', b'{"input": "a" "b"}', b"\x00"],
)
def test_what_is_no_json_or_no_text_is_400(server: Running, body: bytes) -> None:
    assert ask(server, body).status_code == 400


@pytest.mark.parametrize("text", ["a\x00b", "שלום עולם", "👩‍👩‍👧‍👦", "\u202eabc", "e\u0301", "\ufffe"])
def test_unusual_texts_are_embedded(server: Running, text: str) -> None:
    assert np.linalg.norm(vectors(ask(server, {"input": text}))) == pytest.approx(1, abs=1e-6)


def test_a_million_characters_are_refused_or_cut_and_others_are_served_meanwhile(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizing waits until 20 others were answered, which the event loop could not do if it tokenized itself."""
    long, others, encode = "word " * 200_000, threading.Event(), ByteTokenizer.encode

    def patient(self: ByteTokenizer, texts: Sequence[str]) -> list[Ids]:
        assert others.wait(10)
        return encode(self, texts)

    monkeypatch.setattr(ByteTokenizer, "encode", patient)
    with ThreadPoolExecutor(2) as pool:
        refused = pool.submit(ask, server, {"input": long})
        cut = pool.submit(ask, server, {"input": long, "truncate": True})
        for _ in range(20):
            assert CLIENT.get(f"{server.url}/health").status_code == 200
        assert not refused.done()
        assert not cut.done()
        others.set()
    assert refused.result().status_code == 400
    assert "512" in problem(refused.result())["message"]
    assert cut.result().json()["usage"]["prompt_tokens"] == 512


def test_100_000_inputs_are_413(server: Running) -> None:
    assert ask(server, {"input": ["a"] * 100_000}).status_code == 413


def test_300_mb_are_413_without_being_read_into_memory(server: Running) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    client.putrequest("POST", "/v1/embeddings")
    client.putheader("Content-Length", str(300_000_000))
    client.putheader("Expect", "100-continue")
    client.endheaders()
    answer = client.getresponse()
    assert answer.status == 413
    assert "2000000 bytes" in json.loads(answer.read())["error"]["message"]
    client.close()


def test_a_chunked_body_beyond_the_limit_is_413_and_the_client_sees_it(server: Running) -> None:
    chunks = (b"x" * 100_000 for _ in range(50))
    answer = CLIENT.post(f"{server.url}/v1/embeddings", content=chunks, timeout=20)
    assert answer.status_code == 413


def test_a_chunked_body_within_the_limit_is_served(server: Running) -> None:
    body = json.dumps({"input": "a text"}).encode()
    answer = CLIENT.post(f"{server.url}/v1/embeddings", content=iter([body[:5], body[5:]]))
    assert answer.status_code == 200


def test_deep_json_is_413(server: Running) -> None:
    assert ask(server, b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}").status_code == 413


@pytest.mark.parametrize("value", [[[1]] * 60_000, [{}] * 60_000, [[[]]] * 30_000], ids=["ids", "objects", "nested"])
def test_more_lists_than_can_be_read_at_once_are_413(server: Running, value: Any) -> None:
    for body in ({"input": value}, {"input": "a", "unknown": value}):
        answer = ask(server, body)
        assert (answer.status_code, problem(answer)["code"]) == (413, "request_too_large")


def test_brackets_in_a_text_are_not_lists(server: Running) -> None:
    assert ask(server, {"input": '[{"\\' * 100_000, "truncate": True}).status_code == 200


def test_a_compressed_body_is_415(server: Running) -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    assert ask(server, bomb, headers={"Content-Encoding": "gzip"}).status_code == 415


def test_bodies_of_all_requests_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELD_BODIES", 1)
    with running(max_body_bytes=1000) as server:
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n" + b" " * 800)
        assert _until(lambda: ask(server, {"input": "a" * 300}).status_code == 429)
        slow.close()
        assert _until(lambda: ask(server, {"input": "a" * 300}).status_code == 200)


@pytest.mark.parametrize("value", [[-1], [256], [1.5], [2**63], [2**31], [[1], [2, -3]], [[1, True]], [10**400]])
def test_bad_token_ids_are_400(value: Any) -> None:
    with running(token_input="model") as server:
        answer = ask(server, json.dumps({"input": value}).encode())
        assert answer.status_code == 400


@pytest.mark.parametrize("size", [0, -1, 65, 2049, "x", 33, 1.5, True, [16]])
def test_an_untrained_size_is_400_naming_it(server: Running, size: Any) -> None:
    answer = ask(server, {"input": "a", "dimensions": size})
    assert (answer.status_code, problem(answer)["param"]) == (400, "dimensions")
    if type(size) is int:
        assert "16, 32, 64" in problem(answer)["message"]


def test_dimensions_null_is_absent(server: Running) -> None:
    assert vectors(ask(server, {"input": "a", "dimensions": None})).shape == (1, 64)


def test_a_text_has_one_vector_alone_in_a_batch_under_load_and_in_any_order(server: Running) -> None:
    alone = np.concatenate([vectors(ask(server, {"input": text})) for text in TEXTS])
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda turn: vectors(ask(server, {"input": TEXTS[turn:] + TEXTS[:turn]})), range(8)))
    for turn, batch in enumerate(batches):
        assert np.abs(np.roll(batch, turn, axis=0) - alone).max() < 1e-6  # float32 rounding of one mean


def test_nan_is_a_500_for_its_request_alone_and_the_engine_is_reset() -> None:
    loads: list[str] = []
    with running(loader(lambda: FakeEngine(poison=b"poison", delay_s=0.02), loads)) as server:
        before = vectors(ask(server, {"input": "fine"}))
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(ask, server, {"input": "fine"}) for _ in range(3)]
            bad = pool.submit(ask, server, {"input": ["fine", "poison"]})
        answer = bad.result()
        assert (answer.status_code, problem(answer)["code"]) == (500, "engine_error")
        for one in good:
            assert np.array_equal(vectors(one.result()), before)
        assert np.array_equal(vectors(ask(server, {"input": "fine"})), before)
        assert len(loads) > 1


def test_nan_that_a_reset_mends_is_not_seen() -> None:
    engines = iter([FakeEngine(poison=b"poison"), FakeEngine()])
    with running(loader(lambda: next(engines))) as server:
        assert ask(server, {"input": "poison"}).status_code == 200


def test_a_full_house_is_429_with_retry_after_at_once() -> None:
    gate = threading.Event()
    gate.set()
    engine = FakeEngine(gate=gate)
    with running(loader(lambda: engine), max_in_flight=2) as server, ThreadPoolExecutor(2) as pool:
        gate.clear()
        waiting = [pool.submit(ask, server, {"input": "a"}) for _ in range(2)]
        assert _until(lambda: server.service.in_flight == 2)
        answer = ask(server, {"input": "a"})
        assert (answer.status_code, problem(answer)["type"]) == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1
        assert not any(one.done() for one in waiting), "it did not wait for those that were taken"
        gate.set()
        assert [one.result().status_code for one in waiting] == [200, 200]


def test_a_full_queue_is_429_but_one_large_request_is_not() -> None:
    gate = threading.Event()
    gate.set()
    engine = FakeEngine(gate=gate)
    with running(loader(lambda: engine), max_queue_tokens=50) as server, ThreadPoolExecutor(3) as pool:
        assert ask(server, {"input": "a" * 100}).status_code == 200
        gate.clear()
        engine.entered.clear()
        first = pool.submit(ask, server, {"input": "a"})
        assert engine.entered.wait(5)
        second = pool.submit(ask, server, {"input": "a" * 40})
        assert _until(lambda: server.service.scheduler.waiting_tokens > 0)
        answer = ask(server, {"input": "a" * 40})
        assert answer.status_code == 429
        assert "retry-after" in answer.headers
        gate.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_work_of_a_client_that_left_is_dropped_and_its_place_freed() -> None:
    gate = threading.Event()
    gate.set()
    engine = FakeEngine(gate=gate)
    with running(loader(lambda: engine), batch_tokens=20) as server:
        gate.clear()
        engine.batches.clear()
        with pytest.raises(httpx.ReadTimeout):
            CLIENT.post(f"{server.url}/v1/embeddings", json={"input": ["gone now"] * 100}, timeout=0.3)
        assert _until(lambda: server.service.in_flight == 0)
        gate.set()
        assert ask(server, {"input": "stays"}).status_code == 200
        assert sum(map(len, engine.batches)) < 10
        assert server.service.metrics.value("nestling_dropped_texts_total") > 90


def test_slow_and_idle_connections_are_reaped_while_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.3)
    with running() as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        slow_head = socket.create_connection(("127.0.0.1", server.port))
        slow_head.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost:")
        slow_body = socket.create_connection(("127.0.0.1", server.port))
        slow_body.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert ask(server, {"input": "a"}).status_code == 200
        for one in (*idle, slow_head):
            one.settimeout(10)
            assert _closed(one)
        slow_body.settimeout(10)
        assert slow_body.recv(1000).startswith(b"HTTP/1.1 408")
        slow_body.close()
        assert ask(server, {"input": "a"}).status_code == 200


def test_a_client_that_does_not_take_its_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKE_TIMEOUT_S", 0.3)
    with running(max_inputs=20_000) as server:
        body = json.dumps({"input": ["a"] * 20_000}).encode()
        lazy = socket.create_connection(("127.0.0.1", server.port))
        lazy.sendall(HEAD % len(body) + body)
        assert _until(lambda: _recorded(server, "499") == 1, 20)
        assert server.service.in_flight == 0
        assert lazy.recv(9) == b"HTTP/1.1 "
        lazy.close()


def _recorded(server: Running, status: str) -> float:
    """Embedding requests that the access log has counted with that status."""
    return server.service.metrics.value("nestling_requests_total", path="/v1/embeddings", status=status)


def test_the_event_loop_is_never_busy_for_50_ms() -> None:
    """Processor time of its thread from one turn to the next, the least of three tries: a busy machine adds to it."""
    with running(token_input="model", max_inputs=20_000) as server:
        for body in (
            {"input": ["a"] * 20_000},
            {"input": ["a few words"] * 20_000, "encoding_format": "base64"},
            {"input": "word " * 300_000, "truncate": True},
            {"input": [[97] * 400] * 1000},
            {"input": [[97] * 2000] * 200},
            {"input": ["x"] * 20_001},
        ):
            assert min(_longest_turn(server, body) for _ in range(3)) < 0.05


def _longest_turn(server: Any, body: dict[str, Any]) -> float:
    turns: list[float] = []
    beat = asyncio.run_coroutine_threadsafe(_beat(turns), server.loop)
    assert ask(server, body).status_code in (200, 400, 413)
    beat.cancel()
    assert turns
    return max(turns)


@pytest.mark.parametrize(
    "body",
    [
        {"input": [[9] * 480] * 1000},
        {"input": [[9] * 480_000]},
        {"input": [[1]] * 49_000},
        {"input": "[{" * 500_000},
        {"input": "a", "unknown": [[]] * 49_000},
        {"input": ["a few words of text"] * 60_000},
    ],
    ids=["ids", "one list", "short lists", "brackets", "unknown", "texts"],
)
def test_reading_a_body_never_holds_all_threads_for_50_ms(body: dict[str, Any]) -> None:
    """A C call that reads JSON lets no other thread run, so its own processor time is what the event loop waits."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    assert len(raw) < 2_000_000
    EmbeddingRequest.parse(raw)
    best = min(_thread_s(lambda: EmbeddingRequest.parse(raw)) for _ in range(5))
    assert best < 0.05


def _thread_s(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


async def _beat(turns: list[float]) -> None:
    while True:
        start = time.thread_time()
        await asyncio.sleep(0.001)
        turns.append(time.thread_time() - start)


NUMBERS = st.integers() | st.floats(allow_nan=True)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
INPUTS = {
    "input": st.text(min_size=1)
    | st.text()
    | st.lists(st.text(), max_size=5)
    | st.lists(st.integers(-1, 300), max_size=5)
    | ANYTHING,
}
LIKELY = {
    "model": st.sampled_from(["fake", "fake-code", "fake/code.passage", "fake:Q8_0", "x", "", "/"]) | SCALARS,
    "dimensions": st.sampled_from([16, 32, 64, 0]) | SCALARS,
    "encoding_format": st.sampled_from(["float", "base64"]) | SCALARS,
    "embedding_type": st.sampled_from(["int8", "binary", "ubinary"]) | SCALARS,
    "task": st.sampled_from(["code", "retrieval.query"]) | SCALARS,
    "prompt_name": st.sampled_from(["query", "document", "raw"]) | SCALARS,
    "truncate": SCALARS,
    "truncate_prompt_tokens": st.integers(-2, 20) | SCALARS,
    "normalized": SCALARS,
    "content": SCALARS | st.lists(st.text(), max_size=3),
    "tokens": st.lists(st.integers(-1, 300), max_size=5) | SCALARS,
}


@settings(max_examples=300)
@given(
    path=st.sampled_from(["/v1/embeddings", "/v1/embeddings", "/tokenize", "/detokenize"]),
    body=st.fixed_dictionaries(INPUTS, optional=LIKELY) | st.fixed_dictionaries({}, optional=LIKELY | INPUTS),
)
def test_no_body_is_a_server_error(server: Running, path: str, body: dict[str, Any]) -> None:
    answer = CLIENT.post(server.url + path, content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 404, 413)
    if answer.status_code == 200:
        assert "NaN" not in answer.text
        assert "null" not in answer.text
    elif path == "/v1/embeddings":
        problem(answer)
    else:  # llama-server's paths, with its errors
        assert answer.json()["error"].keys() == {"code", "message", "type"}


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_are_a_server_error(server: Running, body: bytes) -> None:
    assert ask(server, body).status_code == 400


def _closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    finally:
        client.close()


def test_keys_are_compared_as_bytes_and_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(api_key=("sesame", "schlüssel")) as server:
        for header in (None, "Bearer wrong", "Bearer", "Basic sesame", "sesame", "Bearer sesame2", "Bearer \xff"):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            answer = ask(server, {"input": "a"}, headers=headers)
            assert (answer.status_code, problem(answer)["code"]) == (401, "invalid_api_key")
        for key in ("sesame", "schlüssel"):
            headers = {"Authorization": b"Bearer " + key.encode()}
            assert ask(server, {"input": "a"}, headers=headers).status_code == 200
        assert CLIENT.get(f"{server.url}/health").status_code == 200
        assert CLIENT.get(f"{server.url}/metrics").status_code == 401
    assert "sesame" not in _logged(caplog)
    assert "schl" not in _logged(caplog)


def test_texts_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running() as server:
        for body in ({"input": "very secret"}, {"input": ["very secret", ""]}, {"input": "a", "very secret": 1}):
            ask(server, body)
    assert "secret" not in _logged(caplog)


def _logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that the server has logged, fields included."""
    records = [record for record in caplog.records if not record.name.startswith("http")]
    assert records, "nothing was logged"
    return "".join(str(record.__dict__) for record in records)


def test_a_port_in_use_is_one_line_that_says_what_to_do(server: Running) -> None:
    with pytest.raises(NestlingError, match=rf"127.0.0.1:{server.port}: .*--port"):
        bound("127.0.0.1", server.port)


def _until(true: Any, timeout_s: float = 5) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


CHILD = "import sys; from tests.contract.serving import serve_alone; serve_alone(float(sys.argv[1]))"


_ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])}


@contextmanager
def _child(delay_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of its own process, and its port."""
    command = [sys.executable, "-c", CHILD, str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_ENVIRON) as child:
        assert child.stdout
        try:
            yield child, int(child.stdout.readline())
        finally:
            child.kill()


@pytest.mark.parametrize("turn", range(6))
def test_sigterm_under_load_loses_nothing_and_exits_0(turn: int) -> None:
    with _child(0.01) as (child, port), ThreadPoolExecutor(8) as pool:
        url = f"http://127.0.0.1:{port}"
        clients = [pool.submit(_until_refused, f"{url}/v1/embeddings") for _ in range(8)]
        time.sleep(0.3 + 0.03 * turn)
        assert CLIENT.get(f"{url}/ready").status_code == 200
        child.send_signal(signal.SIGTERM)
        assert _ready_soon_after(url) in (503, None)
        assert child.wait(20) == 0
        codes = [code for one in clients for code in one.result()]
    assert set(codes) == {200}


def _ready_soon_after(url: str) -> int | None:
    """The status of /ready a moment after the signal; None on a machine so busy that the port is closed by then."""
    time.sleep(0.1)
    try:
        return CLIENT.get(f"{url}/ready").status_code
    except httpx.ConnectError:
        return None


def _until_refused(url: str) -> list[int]:
    """Status codes of requests one after another, until the port is closed: that request was never accepted."""
    codes: list[int] = []
    with httpx.Client(timeout=20, verify=False) as session:
        while True:
            try:
                codes.append(session.post(url, json={"input": ["a", "b"]}).status_code)
            except httpx.ConnectError:
                return codes


def test_a_second_sigterm_exits_at_once() -> None:
    with _child(30) as (child, port), ThreadPoolExecutor(1) as pool:
        lost = pool.submit(CLIENT.post, f"http://127.0.0.1:{port}/v1/embeddings", json={"input": "a"})
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 128 + signal.SIGTERM, "before its batch of 30 s has ended"
        assert isinstance(lost.exception(), httpx.HTTPError)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right key first, and a wrong one's first byte, would end other comparisons early."""
    compared: list[tuple[bytes, bytes]] = []

    def counted(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", counted)
    with running(api_key=("first", "second")) as server:
        for key, status in (("first", 200), ("second", 200), ("third", 401)):
            compared.clear()
            assert CLIENT.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == status
            assert len({known for _, known in compared}) == 2
            assert len(compared) == 2
