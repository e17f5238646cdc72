"""Edges of the protocol, each by every door that it can come through.

- HEAD: every GET route. 405: every route, by its own code.
- A model's entry: by each name that a request may have, names with `/` and `:` among them.
- An unknown model: every route that takes one; names that look like `org/name`, like a path, like a task.
- What is no text: every field that holds texts, null and every other kind; byte order marks in every POST body.
- Host: every route, while anyone on this machine may ask without a key.
- A client that leaves: before its body has come, before its answer, within it; and a server that stops before.
"""

import codecs
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.serving import FakeEngine, Running, loader, running
from tests.fault.test_server_faults import HEAD, _recorded, _until

from nestling.server.api.registry import DIALECTS
from nestling.server.core import service
from nestling.server.http import connection

ROUTES = [route for dialect in DIALECTS for route in dialect.routes]
POSTS = sorted({path for route in ROUTES if route.body for path in (route.path, *route.also)})
GETS = [
    *sorted({path for route in ROUTES if not route.body for path in (route.path, *route.also) if "{" not in path}),
    *("/", "/docs", "/tries", "/openapi.json", "/health", "/ready", "/metrics", "/v1/models/fake", "/models/fake"),
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"], "scoring": "cosine"},
    "/tokenize": {"content": "a"},
    "/detokenize": {"tokens": [97]},
}

LLAMA_SERVERS = ("/tokenize", "/detokenize")
"""Paths whose errors are llama-server's: the status as their code, no param."""


def code_of(answer: httpx.Response) -> str:
    """An error's code; of dialects whose errors have none, by what their message says."""
    error = next(iter(answer.json().values()))
    if isinstance(error, dict):
        return str(error["code"]) if isinstance(error["code"], str) else code_in(str(error["message"]))
    return code_in(str(error))


def code_in(message: str) -> str:
    known = {"Method Not Allowed": "method_not_allowed", "Host": "host_not_allowed"}
    return next((code for words, code in known.items() if words in message), message)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(alias=("text-embedding-3-small", "org/name=fake/code.passage")) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as one:
        yield one


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize(
    ("method", "path"),
    [*(("GET", path) for path in POSTS if path not in GETS), *(("POST", path) for path in GETS if path not in POSTS)],
)
def test_a_wrong_method_says_so_and_which_are_right(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, code_of(answer)) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == ({"POST"} if method == "GET" else {"GET", "HEAD"})


@pytest.mark.parametrize("prefix", ["/v1/models/", "/models/"])
@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("fake", ["retrieval", "text-matching", "code"]),
        ("fake-code", ["code"]),
        ("fake:Q8_0", ["retrieval"]),
        ("fake-code:Q8_0", ["code"]),
        ("fake/code.passage", ["code"]),
        ("text-embedding-3-small", ["retrieval"]),
        ("org/name", ["code"]),
    ],
)
def test_a_model_is_found_by_every_name_of_it(client: httpx.Client, prefix: str, name: str, tasks: list[str]) -> None:
    for spelt in (name, name.replace("/", "%2F").replace(":", "%3A")):
        answer = client.get(prefix + spelt)
        assert answer.status_code == 200, answer.text
        entry = answer.json()
        assert (entry["id"], entry["object"], entry["tasks"]) == (name, "model", tasks)
        assert entry["max_model_len"] == 512
    listed = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert listed.get(name, entry) == entry


UNKNOWN = ["gpt", "jinaai/jina-embeddings-v4", "org/gpt", "/", "fake-nope", "fake:Q4_K_S", "a/b/c", "/tmp/x.gguf"]


@pytest.mark.parametrize("path", [*BODIES, "/v1/models/"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_model_is_404_with_its_whole_name_and_what_is_served(
    client: httpx.Client, path: str, name: str
) -> None:
    answer = client.post(path, json={**BODIES[path], "model": name}) if path in BODIES else client.get(path + name)
    error = answer.json()["error"]
    code, param = (404, None) if path in LLAMA_SERVERS else ("model_not_found", "model")
    assert (answer.status_code, error["code"], error.get("param")) == (404, code, param)
    assert error["message"] == f"model={name!r}: not served here; this server has fake"


def test_the_empty_name_is_no_model(client: httpx.Client) -> None:
    assert client.get("/v1/models/").status_code == 404


def test_a_task_that_is_none_of_a_served_model_is_400(client: httpx.Client) -> None:
    for answer in (client.post("/v1/embeddings", json={"input": "a", "model": "fake/x"}), client.get("/models/fake/x")):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


KINDS: list[tuple[Any, str]] = [(None, "null"), (7, "a number"), (True, "a boolean"), ([], "a list")]


@pytest.mark.parametrize(("value", "kind"), [*KINDS, ({"a": 1}, "an object")])
@pytest.mark.parametrize(
    ("path", "field", "place"),
    [
        ("/v1/embeddings", "input", "input 1"),
        ("/v1/rerank", "documents", "documents[1]"),
        ("/tokenize", "content", "content[1]"),
        ("/tokenize", "prompt", "prompt[1]"),
    ],
)
def test_what_is_no_text_among_texts_is_named_with_its_place(
    client: httpx.Client, path: str, field: str, place: str, value: Any, kind: str
) -> None:
    body = {**BODIES[path], field: ["a", value]}
    if field == "prompt":
        del body["content"]
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    if field == "documents" and isinstance(value, dict):
        place, kind = "documents[1].text", "null"
    expected = f"{place}: expected a string, not {kind}"
    if field == "input" and isinstance(value, dict):
        expected = "input 1: expected one of the keys text, image, url, bytes, found the key 'a'"
    assert (answer.status_code, error["message"]) == (400, expected)


@pytest.mark.parametrize(("value", "kind"), KINDS)
def test_a_document_whose_text_is_none_is_named(client: httpx.Client, value: Any, kind: str) -> None:
    answer = client.post("/v1/rerank", json={"query": "a", "documents": [{"text": value}]})
    expected = f"documents[0].text: expected a string, not {kind}"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, expected)


@pytest.mark.parametrize(("value", "kind"), KINDS[:3])
def test_what_is_neither_a_text_nor_texts_is_named(client: httpx.Client, value: Any, kind: str) -> None:
    message = client.post("/tokenize", json={"content": value}).json()["error"]["message"]
    assert message == f"content: expected a string or a list of strings, not {kind}"


@pytest.mark.parametrize("path", BODIES)
def test_a_byte_order_mark_is_part_of_the_encoding(client: httpx.Client, path: str) -> None:
    plain = json.dumps(BODIES[path]).encode()
    marked = client.post(path, content=codecs.BOM_UTF8 + plain)
    assert (marked.status_code, marked.content) == (200, client.post(path, content=plain).content)
    for encoding in ("utf-16", "utf-16-be"):
        mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
        answer = client.post(path, content=mark + json.dumps(BODIES[path]).encode(encoding))
        code = 400 if path in LLAMA_SERVERS else "invalid_json"
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        assert "UTF-16" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [*GETS, *POSTS, "/nothing"])
def test_a_name_that_is_not_ours_gets_nothing_from_a_keyless_server_on_loopback(
    client: httpx.Client, path: str
) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        answer = client.request("POST" if path in POSTS else "GET", path, headers={"Host": host})
        assert (answer.status_code, code_of(answer)) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:9", "10.0.0.7"]
)
def test_addresses_and_localhost_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "host", "status"),
    [
        ({"allowed_host": ("mine.example",)}, "mine.example", 200),
        ({"allowed_host": ("mine.example",)}, "other.example", 403),
        ({"allowed_host": ("mine.example",), "host": "0.0.0.0"}, "other.example", 403),
        ({"host": "0.0.0.0"}, "other.example", 200),
        ({"api_key": ("k",)}, "other.example", 200),
        ({"host": "::1"}, "other.example", 403),
        ({"host": "localhost"}, "other.example", 403),
    ],
)
def test_names_are_checked_where_it_matters(changes: dict[str, Any], host: str, status: int) -> None:
    with running(**changes) as other:
        headers = {"Host": host, "Authorization": "Bearer k"}
        assert httpx.get(f"{other.url}/v1/models", headers=headers).status_code == status


def test_a_client_that_leaves_before_its_body_has_come_is_recorded_as_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running() as server:
        leaving = socket.create_connection(("127.0.0.1", server.port))
        leaving.sendall(HEAD % 100 + b'{"input"')
        assert _until(lambda: server.service.in_flight == 1)
        leaving.close()
        assert _until(lambda: _recorded(server, "499") == 1)
        assert server.service.in_flight == 0
    assert not [record for record in caplog.records if record.message == "unexpected error"]


def test_a_client_that_leaves_before_its_answer_is_recorded_as_left() -> None:
    gate = threading.Event()
    gate.set()
    engine = FakeEngine(gate=gate)
    with running(loader(lambda: engine)) as server:
        gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}, timeout=0.3)
        assert _until(lambda: _recorded(server, "499") == 1)
        gate.set()


def test_a_client_that_leaves_within_its_answer_is_recorded_as_left() -> None:
    with running(max_inputs=20_000) as server:
        body = json.dumps({"input": ["a"] * 20_000}).encode()
        leaving = socket.create_connection(("127.0.0.1", server.port))
        leaving.sendall(HEAD % len(body) + body)
        assert leaving.recv(100).startswith(b"HTTP/1.1 200")
        assert server.service.in_flight == 1, "the answer has not left"
        leaving.close()
        assert _until(lambda: _recorded(server, "499") == 1)
        assert server.service.in_flight == 0


def test_a_reader_that_takes_a_little_now_and_then_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is for the whole answer: taking some of it does not move it."""
    monkeypatch.setattr(connection, "TAKE_TIMEOUT_S", 1.0)
    with running(max_inputs=20_000) as server:
        body = json.dumps({"input": ["a"] * 20_000}).encode()
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(HEAD % len(body) + body)
        taken = 0

        def take() -> bool:
            nonlocal taken
            taken += len(slow.recv(100_000))
            return _recorded(server, "499") == 1

        assert _until(take, 20)
        assert 0 < taken < 20_000_000, "an answer of 20,000 vectors has more"
        slow.close()


def test_a_large_answer_is_whole_and_right(server: Running) -> None:
    texts = [f"text {n % 50}" for n in range(2000)]
    with httpx.stream("POST", f"{server.url}/v1/embeddings", json={"input": texts}, timeout=20) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        items = json.loads(b"".join(answer.iter_bytes()))["data"]
    rows = np.array([item["embedding"] for item in items], np.float32)
    assert rows.shape == (2000, 64)
    assert np.array_equal(rows[:50], rows[1950:])
    small = httpx.post(f"{server.url}/v1/embeddings", json={"input": texts[:50]})
    assert "content-length" in small.headers
    assert np.allclose([item["embedding"] for item in small.json()["data"]], rows[:50], atol=1e-6)  # float32 rounding


def test_housekeeping_goes_on_after_it_failed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HOUSEKEEPING_S", 0.01)
    rounds: list[int] = []
    with running() as server:

        def fail() -> None:
            rounds.append(len(rounds))
            raise OSError("a folder that is not there")

        monkeypatch.setattr(server.service.catalog, "refresh", fail)
        assert _until(lambda: len(rounds) >= 3)


def test_files_are_not_looked_for_while_a_request_is_read(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    def refuse() -> Any:
        raise AssertionError("folders were read on the event loop")

    monkeypatch.setattr("nestling.models.local.available", refuse)
    for model, status in (("fake:Q4_K_M", 404), ("fake:Q8_0", 200)):
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a", "model": model})
        assert answer.status_code == status
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
