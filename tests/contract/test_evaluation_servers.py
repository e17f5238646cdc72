"""Evaluation against real servers on real ports and models in real processes: answers, failures, death."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation_samples import write_benchmark

from nestling.errors import EngineError, UsageError
from nestling.evaluation import quality, results, speed
from nestling.evaluation.encoders import encode_all, open_encoder
from nestling.evaluation.remote import KEY_VARIABLE, Connection
from nestling.evaluation.results import SpeedResult
from nestling.evaluation.settings import QualitySettings, SpeedSettings
from nestling.evaluation.worker import Worker
from nestling.spec import Role

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """Answers `/v1/embeddings` with what `answer` makes of the request's number and body."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                server.keys.append(self.headers["Authorization"])
                self.reply(*answer(len(server.bodies), body))

            def do_GET(self) -> None:
                spent = 0.5 * len(server.bodies)
                self.reply(200, {}, f'nestling_stage_seconds_sum{{stage="queue"}} {spent}\n'.encode())

            def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._inner = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._inner.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._inner.server_port}/v1"
        threading.Thread(target=self._inner.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._inner.shutdown()
        self._inner.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, dict[str, Any]], Answer]], Server]]:
    started: list[Server] = []

    def start(answer: Callable[[int, dict[str, Any]], Answer]) -> Server:
        started.append(Server(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


def vectors(body: dict[str, Any], *, encoded: bool = True) -> bytes:
    """A two-dimensional vector a text that tells its length, in the wrong order, with `index`."""
    rows = [np.array([len(text), 1], "<f4") for text in body["input"]]
    data = [
        {"index": index, "embedding": base64.b64encode(row.tobytes()).decode() if encoded else row.tolist()}
        for index, row in enumerate(rows)
    ]
    return json.dumps({"data": data[::-1], "usage": {"prompt_tokens": sum(map(len, body["input"]))}}).encode()


@pytest.mark.parametrize("key", ["schl\xfcssel", "two\nlines"])
def test_a_key_that_no_header_can_hold_is_named_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with closing(Connection("http://127.0.0.1:9/v1")) as connection:
        with pytest.raises(UsageError, match=rf"^{KEY_VARIABLE}: expected printable ASCII") as caught:
            connection.embed({"input": ["a"], "model": "fake"})
        assert key not in str(caught.value)


@pytest.mark.parametrize("form", ["base64", "float"])
def test_vectors_come_in_the_order_of_the_texts(serve: Callable[..., Server], form: str) -> None:
    server = serve(lambda _, body: (200, {}, vectors(body, encoded=form == "base64")))
    with closing(open_encoder(f"{server.url}#m/retrieval")) as encoder:
        found = encode_all(encoder, ["ccc", "a", "bb"], role=Role.QUERY)
    assert found.tolist() == [[3, 1], [1, 1], [2, 1]]
    assert server.bodies == [{"input": ["ccc", "bb", "a"], "model": "m/retrieval.query", "encoding_format": "base64"}]


def test_a_busy_server_is_asked_again_and_the_key_is_sent(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    server = serve(lambda n, body: (429, {"Retry-After": "0"}, b"busy") if n < 3 else (200, {}, vectors(body)))
    with closing(Connection(server.url)) as connection:
        assert connection.embed({"input": ["x"], "model": "m"}).shape == (1, 2)
    assert server.keys == ["Bearer secret"] * 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, {}, b'{"error":\n"broken"}'), r'status 500: {"error": "broken"}'),
        ((429, {"Retry-After": "0"}, b"busy"), "status 429: busy"),
        ((200, {}, b"<html>"), "not an embeddings response"),
        ((200, {}, b'{"data": []}'), "not an embeddings response"),
        ((200, {}, b'{"data": [{"index": 0, "embedding": "###"}]}'), "not an embeddings response"),
        (
            (200, {}, b'{"data": [{"index": 0, "embedding": [1, null]}]}'),
            "zero or not finite|not an embeddings response",
        ),
    ],
)
def test_an_answer_that_is_none_is_one_line(serve: Callable[..., Server], answer: Answer, message: str) -> None:
    server = serve(lambda *_: answer)
    with closing(open_encoder(f"{server.url}#m/code")) as encoder, pytest.raises(EngineError, match=message) as caught:
        encode_all(encoder, ["x"], role=Role.QUERY)
    assert "\n" not in str(caught.value)


def test_a_server_that_dies_in_the_middle_leaves_the_results_so_far(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    sets = [write_benchmark(tmp_path / name) for name in ("one", "two")]
    server = serve(lambda n, body: (200, {}, vectors(body)) if n <= 2 else (500, {}, b"gone"))
    settings = QualitySettings(out=tmp_path / "out", benchmarks=tuple(map(str, sets)))
    with pytest.raises(EngineError, match="status 500: gone"):
        list(quality.measure([f"{server.url}#m/retrieval"], settings))
    (kept,) = (tmp_path / "out").iterdir()
    assert kept.name.endswith("-one.json")


def test_no_server_is_one_line() -> None:
    with closing(Connection("http://127.0.0.1:9/v1")) as connection, pytest.raises(EngineError, match="no response"):
        connection.embed({"input": ["x"]})


def test_speed_of_a_server(serve: Callable[..., Server], tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    server = serve(lambda _, body: (200, {}, vectors(body)))
    options = SpeedSettings(
        out=tmp_path,
        lengths=(16,),
        rounds=1,
        pass_tokens=32,
        cell_s=0,
        clients=(1, 3),
        inputs=(2,),
        engines=("reference",),
    )
    local, remote = speed.measure([str(tiny_models["F32"]), f"{server.url}#m/retrieval"], options)
    assert [(cell.clients, len(cell.samples_ms)) for cell in remote.result.latencies] == [(1, 1), (3, 3)]
    assert [cell.stages_s for cell in remote.result.latencies] == [{"queue": 0.5}, {"queue": 1.5}]
    asked = [text for body in server.bodies for text in body["input"]]
    assert len(set(asked)) == len(asked), "a cache could not answer"
    assert isinstance(results.read(local.path), SpeedResult)
    assert local.result.engine == "reference"
    assert local.result.load_time_s is not None
    assert local.result.load_time_s > 0
    assert (local.result.peak_memory_bytes or 0) > 10 * 2**20
    assert remote.result.compared_with == ["tiny-F32 (reference)"]


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match=r"x.gguf"):
        Worker(tmp_path / "x.gguf", engine="reference", threads=1)


def test_a_process_that_dies_is_one_line(tiny_models: dict[str, Path]) -> None:
    with closing(Worker(tiny_models["F32"], engine="reference", threads=1)) as worker:
        worker._process.kill()
        with pytest.raises(EngineError, match=r"tiny-F32.gguf: its process died \(exit code -9\)"):
            worker.run(["x"])
