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
from tests.contract.serving import MAX_TOKENS, running

from nestling.models.embedder import Embedder

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
    assert len(tags["starter-retrieval:latest"]["digest"]) == 64
    assert tags["starter-retrieval:latest"]["details"]["quantization_level"] == "Q8_0"
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
    assert client.post("/api/embed", json=body | {"keep_alive": "soon"}).status_code == 400
    assert client.post("/api/embed", json=body | {"keep_alive": -1}).status_code == 200


@pytest.mark.parametrize("context", [0, -1, 512, 1_000_000, None])
def test_a_context_beyond_the_models_is_the_models(context: int | None) -> None:
    body = {"input": "word " * 200, "options": {"num_ctx": context}}
    with running() as server:
        answer = httpx.post(f"{server.url}/api/embed", json=body)
        assert answer.json()["prompt_eval_count"] == MAX_TOKENS
        assert httpx.post(f"{server.url}/api/embed", json=body | {"truncate": False}).status_code == 400


def test_without_truncate_a_text_beyond_the_context_is_refused(client: httpx.Client) -> None:
    body = {"input": ["a", QUERY], "truncate": False, "options": {"num_ctx": 5}}
    answer = client.post("/api/embed", json=body)
    said = "the input length exceeds the context length: input 1: 10 tokens, options.num_ctx allows 5"
    assert (answer.status_code, answer.json()["error"][: len(said)]) == (400, said)
    body["options"] = {"num_ctx": 10}
    assert client.post("/api/embed", json=body).status_code == 200


def test_a_context_without_room_for_a_text_is_named_as_ollama_names_it(client: httpx.Client) -> None:
    answer = client.post("/api/embed", json={"input": "a", "options": {"num_ctx": 2}})
    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (400, "options.num_ctx=2")


def test_ollama_loads_a_model_for_a_request_without_a_text(client: httpx.Client) -> None:
    for body in ({"model": "starter"}, {"model": "starter", "input": None}, {"model": "starter", "input": ""}):
        assert post(client, "/api/embed", body)["embeddings"] == []
    assert post(client, "/api/embeddings", {"model": "starter"}) == {"embedding": []}
    assert len(post(client, "/api/embed", {"input": "a", "dimensions": 0})["embeddings"][0]) == 256
    answer = client.post("/api/embed", json={"model": "absent"})
    assert (answer.status_code, answer.json()["error"][:24]) == (404, "model 'absent' not found")


def test_a_model_is_shown_with_the_fields_of_its_file(client: httpx.Client) -> None:
    info = post(client, "/api/show", {"model": "starter"})["model_info"]
    assert info["general.architecture"] == "qwen2vl"
    assert info["qwen2vl.context_length"] == 32_768
    assert info["tokenizer.ggml.tokens"] == []
    assert "general.name" not in info
    verbose = post(client, "/api/show", {"name": "starter:latest", "verbose": True})["model_info"]
    assert len(verbose["tokenizer.ggml.tokens"]) > 256


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
    assert (info["max_client_batch_size"], info["auto_truncate"]) == (32, False)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize("auto", [False, True])
def test_tei_cuts_or_refuses_as_the_request_or_else_the_operator_says(*, auto: bool) -> None:
    long = {"inputs": "word " * 200}
    with running(auto_truncate=auto) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/info").json()["auto_truncate"] is auto
        assert client.post("/embed", json=long).status_code == (200 if auto else 413)
        assert client.post("/embed", json=long | {"truncate": False}).status_code == 413
        for side in ("left", "Left", "right", "Right"):
            body = long | {"truncate": True, "truncation_direction": side}
            assert client.post("/embed", json=body).status_code == 200


def test_tei_operators_raise_the_texts_of_a_request() -> None:
    with running(max_client_batch_size=40) as server:
        assert httpx.post(f"{server.url}/embed", json={"inputs": ["a"] * 40}).status_code == 200
        assert httpx.post(f"{server.url}/embed", json={"inputs": ["a"] * 41}).status_code == 413


def test_teis_scores_are_between_0_and_1_unless_raw(client: httpx.Client) -> None:
    body = {"query": QUERY, "texts": ["ls lists files.", PASSAGE]}
    raw = [one["score"] for one in post(client, "/rerank", body | {"raw_scores": True})]
    squeezed = [one["score"] for one in post(client, "/rerank", body)]
    assert np.abs(1 / (1 + np.exp(-np.array(raw))) - squeezed).max() < SAME


def test_llama_servers_answers(client: httpx.Client) -> None:
    found = post(client, "/embedding", {"content": [QUERY, "a"], "embd_normalize": -1})
    assert [one.keys() for one in found] == [{"index", "embedding"}] * 2
    assert abs(np.linalg.norm(found[0]["embedding"][0]) - 1) > 0.01  # its own length: no unit vector
    pieces = post(client, "/tokenize", {"content": "é 🦜", "with_pieces": True})["tokens"]
    whole = b"".join(bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode() for one in pieces)
    assert whole.decode() == "é 🦜"
    assert client.get("/props").json()["default_generation_settings"]["n_ctx"] == 32768
    assert post(client, "/reranking", {"query": QUERY, "documents": ["a", PASSAGE]})["results"][0]["index"] == 1


@pytest.mark.parametrize("path", ["/embedding", "/v1/embeddings"])
def test_llama_servers_objects_are_read_as_their_texts(client: httpx.Client, path: str) -> None:
    parts = [{"type": "text", "text": QUERY[:5]}, {"type": "text", "text": QUERY[5:]}]
    name = "content" if path == "/embedding" else "input"

    def vectors(value: Any) -> list[Any]:
        found = post(client, path, {name: value})
        return [one["embedding"] for one in (found if path == "/embedding" else found["data"])]

    found = vectors([QUERY, {"prompt_string": QUERY}, {"content": parts}])
    assert found == [found[0]] * 3
    assert vectors({"prompt_string": QUERY}) == found[:1]
    none: list[Any] = [
        {"content": QUERY},
        {"content": [{"type": "input_audio"}]},
        {"prompt_string": 1},
        {"content": []},
    ]
    for odd in none:
        answer = client.post(path, json={name: ["a", odd]})
        assert (answer.status_code, "input 1: expected a prompt_string" in answer.text) == (400, True)


def test_vllms_names_for_vectors_at_their_own_length(client: httpx.Client) -> None:
    for field in ("normalize", "use_activation"):
        own = post(client, "/v1/embeddings", {"input": QUERY, field: False})["data"][0]["embedding"]
        assert abs(np.linalg.norm(own) - 1) > 0.01
        assert post(client, "/pooling", {"input": QUERY, field: False})["data"][0]["data"] == own
    assert client.post("/pooling", json={"input": "a", "normalize": False, "use_activation": True}).status_code == 400
    body = {"input": "a", "normalize": False, "return_multivector": True}
    assert client.post("/v1/embeddings", json=body).status_code == 400


def test_special_tokens_cannot_be_read_as_text(client: httpx.Client) -> None:
    assert post(client, "/tokenize", {"content": "a", "parse_special": False})["tokens"]
    answer = client.post("/tokenize", json={"content": "<|im_end|>", "parse_special": False})
    assert (answer.status_code, "parse_special" in answer.text) == (400, True)


def test_vllms_tokens_have_their_texts_where_asked_for(client: httpx.Client) -> None:
    found = post(client, "/tokenize", {"prompt": "a b", "return_token_strs": True})
    assert (found["count"], found["token_strs"]) == (2, ["a", " b"])
    assert post(client, "/tokenize", {"prompt": "a b"})["token_strs"] is None


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


def test_cohere_without_a_type_keeps_a_typed_prefix(client: httpx.Client, model: Embedder) -> None:
    answer = client.post("/v2/embed", json={"texts": ["Passage: " + QUERY]})
    assert "x-nestling-warning" not in answer.headers
    expected = model.encode_document([QUERY])
    assert np.abs(np.array(answer.json()["embeddings"]["float"]) - expected).max() < SAME


def test_coheres_limit_of_tokens_cuts_or_refuses(client: httpx.Client, model: Embedder) -> None:
    body = {"texts": [QUERY], "max_tokens": 5}
    cut = post(client, "/v2/embed", body)["embeddings"]["float"]
    assert np.abs(np.array(cut) - model.embed_ids([model.tokenize([QUERY])[0][:5]])).max() < SAME
    answer = client.post("/v2/embed", json=body | {"truncate": "NONE"})
    assert (answer.status_code, "max_tokens allows 5" in answer.text) == (400, True)
    assert client.post("/v2/embed", json=body | {"max_tokens": 0}).status_code == 400
    assert client.post("/v2/embed", json=body | {"max_tokens": 10**6}).status_code == 200


def test_coheres_documents_are_ranked_by_the_fields_that_are_named(client: httpx.Client) -> None:
    documents = [{"title": "socket(2)", "text": "-", "body": PASSAGE}, {"title": "ls", "text": "-", "body": "lists"}]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["title", "body"]}
    found = post(client, "/v1/rerank", body)
    joined = [f"{one['title']}\n{one['body']}" for one in documents]
    assert found["results"] == post(client, "/v2/rerank", {"query": QUERY, "documents": joined})["results"]
    assert found["meta"]["api_version"] == {"version": "1"}
    for wrong, said in (({"rank_fields": ["none"]}, "documents[0].none"), ({"max_chunks_per_doc": 3}, "ranked whole")):
        answer = client.post("/v1/rerank", json=body | wrong)
        assert (answer.status_code, said in answer.json()["message"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v2/embed", {"texts": ["a"], "dimensions": 64}, 422, "unknown field: parameter 'dimensions'"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "top_k": 1}, 422, "unknown field: parameter 'top_k'"),
        ("/v1/embeddings", {"input": "a", "truncation": True, "dimensions": 64}, 400, "Argument 'dimensions'"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_k": 1, "task": "code"}, 400, "Argument 'task'"),
        ("/api/embed", {"input": "a", "colour": 1}, 200, ""),
        ("/embed", {"inputs": "a", "colour": 1}, 200, ""),
        ("/embedding", {"content": "a", "colour": 1}, 200, ""),
        ("/pooling", {"input": "a", "colour": 1}, 200, ""),
        ("/v1/embeddings", {"input": "a", "colour": 1}, 200, ""),
        ("/v2/embed", {"texts": ["a"], "dimensions": None}, 200, ""),
    ],
)
def test_unknown_fields_are_refused_where_the_project_refuses_them(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text[:300]


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
        ("/embed", {"inputs": ["a"] * 33}, 413, {"error", "error_type"}),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, 422, {"error", "error_type"}),
        ("/embed", {"inputs": "word " * 40_000}, 413, {"error", "error_type"}),
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
