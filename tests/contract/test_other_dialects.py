"""Other servers' dialects on a real port: their requests as their documentation has them, answers field by field.

Sources of the shapes: Ollama docs/api.md; TEI's OpenAPI document; llama.cpp tools/server/README.md; the API references
of Cohere (v1, v2) and Voyage; vLLM's page of pooling models.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.conftest import Served

from nestling.models.embedder import Embedder
from nestling.server.settings import ServeSettings

QUERY, PASSAGE = "How do I open a socket?", "socket(2) creates an endpoint for communication."
SAME = 1e-6


@pytest.fixture(scope="module")
def model(starter_q8: Any) -> Iterator[Embedder]:
    loaded = Embedder.load(starter_q8)
    yield loaded
    loaded.engine.close()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as found:
        yield found


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def of_base64(text: str) -> list[float]:
    return [float(one) for one in np.frombuffer(base64.b64decode(text), "<f4")]


VECTORS: dict[str, tuple[str, dict[str, Any], Callable[[Any], list[float]], str]] = {
    "ollama": ("/api/embed", {"model": "starter", "input": QUERY}, lambda a: a["embeddings"][0], "query"),
    "ollama, latest": (
        "/api/embed", {"model": "starter:latest", "input": [QUERY]}, lambda a: a["embeddings"][0], "query",
    ),
    "ollama, role": (
        "/api/embed", {"model": "starter/retrieval.passage", "input": QUERY}, lambda a: a["embeddings"][0], "passage",
    ),
    "ollama, typed": (
        "/api/embed", {"model": "starter", "input": "Passage: " + QUERY}, lambda a: a["embeddings"][0], "passage",
    ),
    "ollama, old": ("/api/embeddings", {"model": "starter", "prompt": QUERY}, lambda a: a["embedding"], "query"),
    "tei": ("/embed", {"inputs": QUERY}, lambda a: a[0], "query"),
    "tei, base": ("/", {"inputs": [QUERY]}, lambda a: a[0], "query"),
    "tei, prompt": ("/tei/embed", {"inputs": QUERY, "prompt_name": "passage"}, lambda a: a[0], "passage"),
    "tei, typed": ("/embed", {"inputs": "Passage: " + QUERY}, lambda a: a[0], "passage"),
    "llama-server": ("/embedding", {"content": QUERY}, lambda a: a[0]["embedding"][0], "query"),
    "llama-server, plural": ("/embeddings", {"content": [QUERY]}, lambda a: a[0]["embedding"][0], "query"),
    "cohere 1": (
        "/v1/embed", {"model": "starter", "texts": [QUERY], "input_type": "search_query"}, lambda a: a["embeddings"][0],
        "query",
    ),
    "cohere 2": (
        "/v2/embed",
        {"model": "starter", "texts": [QUERY], "input_type": "search_document", "embedding_types": ["float"]},
        lambda a: a["embeddings"]["float"][0], "passage",
    ),
    "cohere 2, inputs": (
        "/v2/embed",
        {"model": "starter", "inputs": [{"content": [{"type": "text", "text": QUERY}]}], "input_type": "search_query"},
        lambda a: a["embeddings"]["float"][0], "query",
    ),
    "voyage": (
        "/v1/embeddings", {"model": "starter", "input": [QUERY], "input_type": "document", "truncation": True},
        lambda a: a["data"][0]["embedding"], "passage",
    ),
    "voyage, base64": (
        "/voyage/v1/embeddings",
        {"model": "starter", "input": QUERY, "input_type": "query", "encoding_format": "base64"},
        lambda a: of_base64(a["data"][0]["embedding"]), "query",
    ),
    "vllm": ("/pooling", {"model": "starter", "input": QUERY}, lambda a: a["data"][0]["data"], "query"),
    "vllm, base64": (
        "/pooling", {"model": "starter", "input": QUERY, "encoding_format": "base64"},
        lambda a: of_base64(a["data"][0]["data"]), "query",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_the_vector_is_the_python_one(name: str, client: httpx.Client, model: Embedder) -> None:
    path, body, read, role = VECTORS[name]
    expected = model.encode([QUERY], prompt_name=role)[0]
    assert np.abs(np.array(read(post(client, path, body))) - expected).max() < SAME


def test_ollamas_answers(client: httpx.Client) -> None:
    found = post(client, "/api/embed", {"model": "starter", "input": [QUERY, "Passage: a"], "dimensions": 64})
    assert found.keys() == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert [len(row) for row in found["embeddings"]] == [64, 64]
    assert post(client, "/api/embed", {"model": "starter", "input": []})["embeddings"] == []
    assert post(client, "/api/embeddings", {"model": "starter", "prompt": ""}) == {"embedding": []}
    assert client.get("/api/version").json().keys() == {"version"}
    tags = {one["name"]: one for one in client.get("/api/tags").json()["models"]}
    assert len(tags["starter-retrieval"]["digest"]) == 64
    assert tags["starter-retrieval"]["details"]["quantization_level"] == "Q8_0"
    [loaded] = client.get("/api/ps").json()["models"]
    assert loaded["name"] == "starter-retrieval:Q8_0"
    shown = post(client, "/api/show", {"model": "starter:latest"})
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["qwen2vl.embedding_length"] == 256


def test_ollamas_context_cuts_and_keep_alive_is_answered(client: httpx.Client, model: Embedder) -> None:
    body = {"model": "starter", "input": QUERY, "options": {"num_ctx": 5}, "keep_alive": "5m"}
    answer = client.post("/api/embed", json=body)
    ids = model.tokenize([QUERY])[0][:5]
    assert np.abs(np.array(answer.json()["embeddings"][0]) - model.embed_ids([ids])[0]).max() < SAME
    assert "keep_alive" in answer.headers["x-nestling-warning"]


def test_teis_answers(client: httpx.Client, model: Embedder) -> None:
    states = post(client, "/embed_all", {"inputs": [QUERY, "a"], "prompt_name": "query"})
    ids = model.tokenize([QUERY])
    assert np.array(states[0]).shape == (len(ids[0]), 256)
    ranked = post(client, "/rerank", {"query": QUERY, "texts": ["ls lists files.", PASSAGE], "return_text": True})
    assert [one.keys() for one in ranked] == [{"index", "score", "text"}] * 2
    assert ranked[0]["text"] == PASSAGE
    [tokens] = post(client, "/tokenize", {"inputs": "a <|im_end|> é"})
    assert [one.keys() for one in tokens] == [{"id", "text", "special", "start", "stop"}] * len(tokens)
    assert [one["text"] for one in tokens if one["special"]] == ["<|im_end|>"]
    ids_of = [one["id"] for one in tokens]
    assert post(client, "/decode", {"ids": ids_of, "skip_special_tokens": False}) == ["a <|im_end|> é"]
    assert post(client, "/decode", {"ids": [ids_of]}) == ["a  é"]
    info = client.get("/info").json()
    assert info["max_client_batch_size"] == ServeSettings().max_inputs
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


def test_llama_servers_answers(client: httpx.Client) -> None:
    found = post(client, "/embedding", {"content": [QUERY, "a"], "embd_normalize": -1})
    assert [one.keys() for one in found] == [{"index", "embedding"}] * 2
    assert abs(np.linalg.norm(found[0]["embedding"][0]) - 1) > 0.01  # its own length: no unit vector
    pieces = post(client, "/tokenize", {"content": "é 🦜", "with_pieces": True})["tokens"]
    whole = b"".join(bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode() for one in pieces)
    assert whole.decode() == "é 🦜"
    assert client.get("/props").json()["default_generation_settings"]["n_ctx"] == 32768
    assert post(client, "/reranking", {"query": QUERY, "documents": ["a", PASSAGE]})["results"][0]["index"] == 1


def test_coheres_answers(client: httpx.Client) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"model": "starter", "texts": [QUERY], "input_type": "search_query", "embedding_types": types}
    found = post(client, "/v2/embed", body | {"output_dimension": 64})
    assert found.keys() == {"id", "texts", "response_type", "meta", "embeddings"}
    assert list(found["embeddings"]) == types
    assert [len(found["embeddings"][kind][0]) for kind in types[:5]] == [64, 64, 64, 8, 8]
    assert np.array(found["embeddings"]["uint8"]).tolist() == (np.array(found["embeddings"]["int8"]) + 128).tolist()
    assert found["meta"]["api_version"] == {"version": "2"}
    plain = post(client, "/v1/embed", {"texts": ["a", "b"], "model": "starter", "input_type": "clustering"})
    assert plain["response_type"] == "embeddings_floats"
    for path in ("/v2/rerank", "/cohere/v1/rerank"):
        ranked = post(client, path, {"model": "starter", "query": QUERY, "documents": ["a", PASSAGE], "top_n": 1})
        assert ranked.keys() == {"id", "results", "meta"}
        assert [one["index"] for one in ranked["results"]] == [1]


def test_voyages_answers(client: httpx.Client) -> None:
    body = {"model": "starter", "input": ["a", "b"], "truncation": True, "output_dimension": 64}
    found = post(client, "/v1/embeddings", body | {"output_dtype": "int8", "encoding_format": "base64"})
    assert found.keys() == {"object", "data", "model", "usage"}
    assert len(np.frombuffer(base64.b64decode(found["data"][1]["embedding"]), np.int8)) == 64
    assert found["usage"].keys() == {"total_tokens"}
    body = {"model": "starter", "query": QUERY, "documents": ["a", PASSAGE], "top_k": 1, "return_documents": True}
    ranked = post(client, "/v1/rerank", body)
    assert ranked.keys() == {"object", "data", "model", "usage"}
    assert [(one["index"], one["document"]) for one in ranked["data"]] == [(1, PASSAGE)]


def test_vllms_answers(client: httpx.Client, model: Embedder) -> None:
    found = post(client, "/score", {"model": "starter", "text_1": QUERY, "text_2": ["a", PASSAGE]})
    assert found.keys() == {"id", "object", "created", "model", "usage", "data"}
    expected = model.encode_query([QUERY]) @ model.encode_document(["a", PASSAGE]).T
    assert np.abs(np.array([one["score"] for one in found["data"]]) - expected[0]).max() < SAME
    pairs = post(client, "/v1/score", {"queries": [QUERY, "a"], "documents": [PASSAGE, "a"]})
    assert [one["index"] for one in pairs["data"]] == [0, 1]


@pytest.mark.parametrize(
    ("path", "body", "status", "keys"),
    [
        ("/api/embed", {"model": "absent", "input": "a"}, 404, {"error"}),
        ("/api/embed", {"model": "starter", "input": ["a", " "]}, 400, {"error"}),
        ("/api/embed", {"model": "starter", "input": "a", "dimensions": 63}, 400, {"error"}),
        ("/api/embed", {"model": "starter", "input": "a", "options": {"num_ctx": "many"}}, 400, {"error"}),
        ("/embed", {"inputs": []}, 400, {"error", "error_type"}),
        ("/embed", {"inputs": ["a", None]}, 422, {"error", "error_type"}),
        ("/embed", {"inputs": ["a"] * 2049}, 413, {"error", "error_type"}),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, 422, {"error", "error_type"}),
        ("/embed", {"inputs": "word " * 40_000}, 422, {"error", "error_type"}),
        ("/rerank", {"query": "a", "texts": []}, 400, {"error", "error_type"}),
        ("/embedding", {"content": ""}, 400, {"error"}),
        ("/embedding", {"content": "a", "embd_normalize": 0}, 400, {"error"}),
        ("/v2/embed", {"model": "starter", "texts": ["a"] * 97, "input_type": "search_query"}, 400, {"message"}),
        ("/v2/embed", {"model": "starter", "texts": ["a"], "input_type": "x"}, 400, {"message"}),
        ("/v2/embed", {"model": "starter", "images": ["data:"], "input_type": "image"}, 400, {"message"}),
        ("/v1/embed", {"model": "absent", "texts": ["a"]}, 404, {"message"}),
        ("/v1/embed", {"texts": ["word " * 40_000], "truncate": "NONE"}, 400, {"message"}),
        ("/v1/embeddings", {"input": "a", "truncation": True, "output_dtype": "base64"}, 400, {"detail"}),
        ("/voyage/v1/rerank", {"query": "a", "documents": []}, 400, {"detail"}),
        ("/pooling", {"input": "a", "encoding_format": "int8"}, 400, {"error"}),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 400, {"error"}),
        ("/score", {"text_1": "a"}, 400, {"error"}),
        ("/ollama/none", {}, 404, {"error"}),
        ("/tei/none", {}, 404, {"error", "error_type"}),
    ],
)
def test_errors_are_the_dialects_own(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, keys: set[str]
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json().keys()) == (status, keys), answer.text


@pytest.mark.parametrize("path", ["/api/embed", "/embed", "/embedding", "/v2/embed", "/pooling", "/score", "/decode"])
def test_bodies_that_are_no_json_are_never_ours_to_blame(client: httpx.Client, path: str) -> None:
    for body in (b"", b"{", b"[]", b'"a"', b"null", b'{"input": "\xff"}'):
        answer = client.post(path, content=body)
        assert 400 <= answer.status_code < 500, (path, body)


def test_a_prefix_twice_is_said(client: httpx.Client) -> None:
    body = {"model": "starter", "input": ["a", "Query: b"]}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.headers["x-nestling-warning"].startswith("input 1: begins with a prefix and got another")
    assert "x-nestling-warning" not in client.post("/v1/embeddings", json=body | {"prompt_name": "raw"}).headers
    assert "x-nestling-warning" not in client.post("/api/embed", json=body).headers
