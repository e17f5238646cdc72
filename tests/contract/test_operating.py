"""What an operator relies on: starting, settings, logs, the cache, other origins."""

import logging
import os
import subprocess
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.conftest import NESTLING, Served
from tests.contract.serving import FakeEngine, Running, fake_embedder, loader, running, settings

from nestling.errors import ModelNotFoundError
from nestling.models.embedder import Embedder
from nestling.server import process
from nestling.server.app import create_app
from nestling.server.listening import bound

CLIENT = httpx.Client(timeout=20, verify=False, limits=httpx.Limits(max_keepalive_connections=0))


def embed(server: Running, **body: Any) -> httpx.Response:
    return CLIENT.post(f"{server.url}/v1/embeddings", json=body)


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def test_unknown_paths_and_methods_have_the_error_shape() -> None:
    with running() as server:
        for answer, status in (
            (CLIENT.get(f"{server.url}/v2/embeddings"), 404),
            (CLIENT.get(f"{server.url}/v1/embeddings"), 405),
        ):
            assert answer.status_code == status
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_it_is_alive_but_not_ready_while_it_loads_and_requests_wait() -> None:
    gate = threading.Event()

    def load(reference: str) -> Embedder:
        assert gate.wait(20)
        return loader()(reference)

    app = create_app(settings(), load)
    listener = bound("127.0.0.1", 0)
    server = process.Server(app, listener, drain_s=2, announce=lambda *_: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert CLIENT.get(f"{url}/health").status_code == 200
    answer = CLIENT.get(f"{url}/ready")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "loading")
    assert "retry-after" in answer.headers
    threading.Timer(0.2, gate.set).start()
    assert CLIENT.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
    assert CLIENT.get(f"{url}/ready").status_code == 200
    server.should_exit = True
    thread.join(20)


def test_while_it_drains_it_is_not_ready_and_closes_connections_but_answers() -> None:
    with running() as server:
        assert "connection" not in CLIENT.get(f"{server.url}/ready").headers
        server.service.draining = True
        answer = CLIENT.get(f"{server.url}/ready")
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert embed(server, input="a").status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason() -> None:
    def load(_reference: str) -> Embedder:
        raise ModelNotFoundError("it is not here")

    with pytest.raises(ModelNotFoundError, match="it is not here"):
        process.run(settings(), load)
    logging.getLogger("nestling.server").handlers.clear()
    logging.getLogger("nestling.server").propagate = True


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "nobody"], 1, "nobody"),
        (["--model", "none.gguf"], 1, "none.gguf"),
        (["--port", "x"], 2, "--port"),
        (["--engine", "vllm"], 2, "vllm"),
        (["--alias", "a=nobody"], 2, "nobody"),
    ],
)
def test_a_bad_start_is_one_line_and_an_exit_code(flags: list[str], code: int, said: str, cache_folder: Any) -> None:
    environ = {**os.environ, "NESTLING_CACHE": str(cache_folder)}
    done = subprocess.run(
        [NESTLING, "serve", "--port", "0", *flags], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == code
    assert said in done.stderr
    assert code == 2 or said in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line_and_exit_code_1(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    done = subprocess.run([NESTLING, "serve", "--port", port], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "--port" in done.stderr


def test_unknown_fields_are_logged_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running() as server:
        for _ in range(3):
            assert embed(server, input="a", prefix_field="secret").status_code == 200
    noted = [record for record in caplog.records if record.message == "unknown field ignored"]
    assert [record.fields for record in noted] == [{"field": "prefix_field"}]  # type: ignore[attr-defined]


def test_the_cache_answers_what_the_engine_did_and_is_off_by_default() -> None:
    engine = FakeEngine()
    with running(loader(lambda: engine), cache_mb=1) as server:
        first = vectors(embed(server, input=["a", "b"]))
        engine.batches.clear()
        again = vectors(embed(server, input=["b", "c", "a"], dimensions=64))
        assert np.array_equal(again[[2, 0]], first)
        assert sum(map(len, engine.batches)) == 1
        assert server.service.metrics.value("nestling_cache_hits_total") == 2
    with running(loader(lambda: engine)) as server:
        engine.batches.clear()
        for _ in range(2):
            vectors(embed(server, input="a"))
        assert len(engine.batches) == 2


def test_a_family_loads_its_tasks_on_first_use_or_ahead() -> None:
    loads: list[str] = []
    with running(loader(loads=loads)) as server:
        assert loads == ["fake-retrieval:Q8_0"]
        vectors(embed(server, input="a", task="code"))
        vectors(embed(server, input="a", model="fake-code"))
        assert loads[1:] == ["fake-code:Q8_0"]
    loads.clear()
    with running(loader(loads=loads), preload=True):
        assert len(loads) == 3


def test_a_task_that_is_loading_does_not_hold_up_another() -> None:
    gate = threading.Event()

    def load(reference: str) -> Embedder:
        assert "code" not in reference or gate.wait(20)
        return fake_embedder()

    with running(load) as server:
        waiting = threading.Thread(target=embed, args=(server,), kwargs={"input": "a", "task": "code"})
        waiting.start()
        vectors(embed(server, input="a"))
        gate.set()
        waiting.join(20)


def test_a_short_query_does_not_wait_behind_2000_texts() -> None:
    engine = FakeEngine(delay_s=0.02)
    with running(loader(lambda: engine), batch_tokens=512) as server:
        bulk = threading.Thread(target=embed, args=(server,), kwargs={"input": ["some words " * 5] * 2000})
        bulk.start()
        while len(engine.batches) < 3:
            time.sleep(0.01)
        before = len(engine.batches)
        vectors(embed(server, input="a query"))
        assert len(engine.batches) - before <= 3, "the batch that ran, its own, and one that began meanwhile"
        bulk.join(60)


def test_other_origins_are_let_in_only_when_named() -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    with running(cors_origin=("https://app.example",), api_key=("k",)) as server:
        answer = CLIENT.options(f"{server.url}/v1/embeddings", headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example")
    with running() as server:
        answer = CLIENT.options(f"{server.url}/v1/embeddings", headers=asked)
        assert "access-control-allow-origin" not in answer.headers


def test_an_alias_is_answered_and_echoed() -> None:
    with running(alias=("text-embedding-3-small",)) as server:
        answer = embed(server, input="a", model="text-embedding-3-small")
        assert answer.json()["model"] == "text-embedding-3-small"
