"""Real clients, and the recorded requests of others, against `nestling serve` with the starter."""

import asyncio
import base64
import json
import shutil
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.contract.conftest import Served
from tests.contract.snippets import snippets

from nestling import Embedder
from nestling.vectors import Floats

SUNSETS = [
    "A beautiful sunset over the beach",
    "Un beau coucher de soleil sur la plage",
    "海滩上美丽的日落",
    "浜辺に沈む美しい夕日",
]
EXACT = 1e-6
"""Float32 rounding; the server's vectors are the library's own, another batch apart."""
SAME = 0.9999
"""Cosine of one text's vectors from different batches of the int8 engine."""


@pytest.fixture(scope="module")
def embedder(served: Served) -> Embedder:
    assert served.url
    return Embedder.load("starter-retrieval:Q8_0")


def post(served: Served, body: dict[str, Any], path: str = "/v1/embeddings") -> dict[str, Any]:
    answer = httpx.post(served.url + path, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def rows(answer: dict[str, Any]) -> Floats:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([_floats(item["embedding"]) for item in answer["data"]], np.float32)


def _floats(value: Any) -> Any:
    return np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else value


def cosines(left: Floats, right: Floats) -> Floats:
    return np.asarray((left * right).sum(1))


def test_openai(served: Served, embedder: Embedder) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="starter", input=SUNSETS)
        found = np.array([item.embedding for item in answer.data], np.float32)
        assert cosines(found, embedder.encode_query(SUNSETS)).min() > SAME
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < EXACT
        assert answer.model == "starter"
        assert answer.usage.prompt_tokens == sum(map(len, embedder.tokenize(SUNSETS)))
        floats = client.embeddings.create(model="starter/retrieval.passage", input=SUNSETS[0], encoding_format="float")
        passage = embedder.encode_document(SUNSETS[:1])
        assert cosines(np.array([floats.data[0].embedding], np.float32), passage)[0] > SAME
        small = client.embeddings.create(model="starter", input=SUNSETS[0], dimensions=64)
        assert len(small.data[0].embedding) == 64
        assert {model.id for model in client.models.list()} >= {"starter", "starter-code"}


def test_openai_errors(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="32, 64, 128, 256") as caught:
            client.embeddings.create(model="starter", input="a", dimensions=100)
        assert (caught.value.param, caught.value.code) == ("dimensions", "invalid_value")
        with pytest.raises(openai.NotFoundError, match="this server has starter"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            client.embeddings.create(model="starter", input=[[9906, 1917]])


def test_openai_async(served: Served, embedder: Embedder) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asks = [client.embeddings.create(model="starter", input=SUNSETS[n % 4]) for n in range(24)]
            return await asyncio.gather(*asks)

    found = np.array([answer.data[0].embedding for answer in asyncio.run(ask_all())], np.float32)
    assert cosines(found, np.tile(embedder.encode_query(SUNSETS), (6, 1))).min() > SAME


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_command_that_the_server_proposes(served: Served) -> None:
    done = subprocess.run(served.proposed, shell=True, capture_output=True, check=True)
    assert rows(json.loads(done.stdout)).shape == (1, 256)


@pytest.mark.parametrize("client", ["curl", "openai (Python)", "openai (Python, async)"])
def test_examples_of_the_documentation(served: Served, client: str) -> None:
    snippet = snippets()[client]
    program = {"bash": ["bash", "-c"], "python": [sys.executable, "-c"]}[snippet.language]
    done = subprocess.run([*program, snippet.at(served.url)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "256" or rows(json.loads(done.stdout)).shape == (1, 128)


def test_translations_are_nearer_than_another_subject(served: Served) -> None:
    found = rows(post(served, {"input": [*SUNSETS, "How do I change the oil of my car?"]}))
    near = found[1:4] @ found[0]
    assert near.min() > found[4] @ found[0]


RECORDED: dict[str, dict[str, Any]] = {
    "langchain-openai, texts": {
        "input": ["a text", "another"],
        "model": "starter",
        "dimensions": 128,
        "encoding_format": "base64",
    },
    "llama-index OpenAILike": {"input": ["a text", "another"], "model": "starter", "encoding_format": "base64"},
    "llama-index Jina": {
        "input": ["a text", "another"],
        "model": "starter",
        "encoding_type": "float",
        "task": "retrieval.passage",
        "late_chunking": False,
        "dimensions": 128,
    },
    "haystack": {"model": "starter", "input": "a text", "encoding_format": "float"},
    "litellm": {"model": "starter", "input": ["a text"]},
    "litellm jina_ai": {"model": "starter", "input": ["a text"], "task": "text-matching"},
    "open-webui": {"input": ["a text"], "model": "starter", "prefix_of_theirs": "x"},
    "mteb": {
        "input": ["a text"],
        "model": "starter",
        "encoding_format": "float",
        "truncate_prompt_tokens": 32768,
        "user": "mteb",
    },
    "chroma jina": {
        "input": ["a text"],
        "model": "starter",
        "task": "code.query",
        "late_chunking": False,
        "truncate": True,
        "dimensions": 64,
        "embedding_type": "float",
        "normalized": True,
    },
    "lancedb": {"input": ["a text"], "model": "starter", "dimensions": None},
    "weaviate": {"input": ["a text"], "model": "starter"},
    "llm": {"input": [f"text {n}" for n in range(100)], "model": "starter"},
    ".NET": {"input": ["a text"], "model": "starter", "encoding_format": "base64"},
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_what_other_clients_send(served: Served, name: str, path: str) -> None:
    body = RECORDED[name]
    answer = post(served, body, path)
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    found = rows(answer)
    assert found.shape == (len(inputs), body.get("dimensions") or 256)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < EXACT
    assert isinstance(answer["data"][0]["embedding"], str if body.get("encoding_format") == "base64" else list)
    assert answer["model"] == "starter"
    assert answer["object"] == "list"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_every_way_to_ask_for_a_task_and_a_role_is_the_same(served: Served) -> None:
    ways: list[dict[str, Any]] = [
        {"model": "starter/code.passage"},
        {"model": "starter-code", "prompt_name": "passage"},
        {"model": "starter", "task": "code", "input_type": "document"},
        {"task": "code.passage"},
    ]
    found = np.concatenate([rows(post(served, {"input": "def f(): pass", **way})) for way in ways])
    assert (found @ found[0]).min() > SAME
    other = rows(post(served, {"input": "def f(): pass", "model": "starter/retrieval.passage"}))
    assert found[0] @ other[0] < SAME


def test_packed_forms_keep_the_neighbours(served: Served) -> None:
    exact = rows(post(served, {"input": SUNSETS}))
    packed = {
        form: rows(post(served, {"input": SUNSETS, "embedding_type": form})) for form in ("int8", "binary", "ubinary")
    }
    assert cosines(packed["int8"] / np.linalg.norm(packed["int8"], axis=1, keepdims=True), exact).min() > 0.999
    assert packed["ubinary"].shape == (4, 32)
    assert np.array_equal(packed["binary"], packed["ubinary"] - 128)


def test_not_normalised_is_the_same_direction(served: Served) -> None:
    unit = rows(post(served, {"input": SUNSETS, "dimensions": 64}))
    raw = rows(post(served, {"input": SUNSETS, "dimensions": 64, "normalized": False}))
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(length - 1).min() > 0.01
    assert cosines(raw / length, unit).min() > SAME


def test_a_cut_text_is_its_beginning(served: Served, embedder: Embedder) -> None:
    text = "the whole of a text " * 20
    found = rows(post(served, {"input": text, "truncate_prompt_tokens": 20}))
    assert cosines(found, embedder.embed_ids([embedder.tokenize([text])[0][:20]]))[0] > SAME


def test_models_say_what_clients_need(served: Served) -> None:
    models = {item["id"]: item for item in httpx.get(f"{served.url}/v1/models").json()["data"]}
    assert models["starter"]["max_model_len"] == 32768
    assert models["starter"]["dimensions"] == [32, 64, 128, 256]
    assert models["starter"]["tasks"] == ["retrieval", "text-matching", "code"]
    assert models["starter-code"]["tasks"] == ["code"]


def test_tokenize_and_detokenize(served: Served, embedder: Embedder) -> None:
    answer = post(served, {"content": SUNSETS[2]}, "/tokenize")
    assert answer["tokens"] == embedder.tokenize(SUNSETS[2:3], prompt_name="raw")[0].tolist()
    assert answer["count"] == len(answer["tokens"])
    assert post(served, {"tokens": answer["tokens"]}, "/detokenize")["content"] == SUNSETS[2]
    several = post(served, {"content": SUNSETS, "prompt_name": "query"}, "/tokenize")
    assert several["tokens"] == [ids.tolist() for ids in embedder.tokenize(SUNSETS)]


def test_metrics_count_what_was_served(served: Served) -> None:
    def tokens() -> float:
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("nestling_tokens_total{"))

    before = tokens()
    used = post(served, {"input": SUNSETS})["usage"]["total_tokens"]
    assert tokens() - before == used


def test_the_pages_ask_nobody_else(served: Served) -> None:
    for path in ("/", "/docs"):
        answer = httpx.get(served.url + path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not [word for word in ("http:" + "//", "https:" + "//", "src=") if word in answer.text]


def test_the_openapi_document_names_every_field(served: Served) -> None:
    document = httpx.get(f"{served.url}/openapi.json").json()
    operation = document["paths"]["/v1/embeddings"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {"input", "dimensions", "encoding_format", "task", "truncate_prompt_tokens"} <= schema["properties"].keys()
    assert schema["properties"]["encoding_format"]["anyOf"][0]["enum"] == ["float", "base64"]
    assert "429" in operation["responses"]
