"""Every example of docs/moving.md, run as it stands: its vector is the one that Python gives for the text's role.

Doors by which a wrong vector or model could come: the role that each API names in its own way (a field, a task, the
model's name, a typed prefix); the model's name (an alias, `:latest`, a name that is not served).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from tests.contract.conftest import Served, serving
from tests.contract.snippets import MOVING, Snippet, snippets

from nestling import Embedder
from nestling.vectors import Floats

PASSAGE = "A socket is opened with socket() and connect()."
EXAMPLES = snippets(MOVING)
SERVERS = [
    "Ollama", "Text Embeddings Inference", "llama-server", "Cohere", "Voyage", "Jina", "vLLM", "infinity",
]  # fmt: skip
SAME = 1e-6
"""Float32 rounding: one text alone in a batch, on the server as here."""


@pytest.fixture(scope="module")
def expected(served: Served) -> Floats:
    assert served.url
    return Embedder.load("starter-retrieval:Q8_0").encode_document([PASSAGE])


def test_every_server_has_an_example() -> None:
    assert list(EXAMPLES) == SERVERS


@pytest.mark.parametrize("server", SERVERS)
def test_the_example_gives_the_vector_of_python(served: Served, expected: Floats, server: str) -> None:
    found = vector_of(EXAMPLES[server], served.url)
    assert np.abs(np.array(found) - expected).max() < SAME


def vector_of(snippet: Snippet, url: str) -> list[float]:
    """What an example computes: a Python program's `vector`, the one vector in curl's answer."""
    code = snippet.at(url)
    if snippet.language == "bash":
        return vector_in(json.loads(output("bash", "-c", code)))
    lines = output(sys.executable, "-c", code + "print([float(number) for number in vector])\n").splitlines()
    assert lines[0] == "256"
    return list(json.loads(lines[1]))


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def vector_in(answer: Any) -> list[float]:
    """The first list of numbers in a JSON answer."""
    return next(_vectors(answer))


def _vectors(answer: Any) -> Iterator[list[float]]:
    if isinstance(answer, list) and answer and isinstance(answer[0], float):
        yield answer
    elif isinstance(answer, list | dict):
        for item in answer.values() if isinstance(answer, dict) else answer:
            yield from _vectors(item)


@pytest.fixture(scope="module")
def aliased(served: Served) -> Iterator[Served]:
    assert served.url
    aliases = ("jina-embeddings-v4", "jina-embeddings-v4:latest", "their-code=starter-code")
    with serving(*(part for name in aliases for part in ("--alias", name))) as one:
        yield one


@pytest.mark.parametrize("name", ["jina-embeddings-v4", "jina-embeddings-v4:latest"])
def test_ollamas_client_keeps_the_models_name(aliased: Served, expected: Floats, name: str) -> None:
    with ollama.Client(host=aliased.url) as client:
        answer = client.embed(model=name, input=["Passage: " + PASSAGE])
        assert np.abs(np.array(answer.embeddings[0]) - expected).max() < SAME
        assert answer.model == name
        old = client.embeddings(model=name, prompt="Passage: " + PASSAGE)
        assert np.abs(np.array(old.embedding) - expected).max() < SAME
        assert client.show(name).capabilities == ["embedding"]


def test_an_alias_names_a_task_and_takes_a_role(aliased: Served) -> None:
    code = Embedder.load("starter-code:Q8_0").encode_document([PASSAGE])
    body = {"model": "their-code:latest", "input": "Passage: " + PASSAGE}
    answer = httpx.post(f"{aliased.url}/api/embed", json=body, timeout=60)
    assert np.abs(np.array(vector_in(answer.json())) - code).max() < SAME


def test_aliases_are_listed_as_the_models_are(aliased: Served) -> None:
    tags = {one["name"] for one in httpx.get(f"{aliased.url}/api/tags", timeout=60).json()["models"]}
    assert {"jina-embeddings-v4:latest", "their-code:latest", "starter:latest"} <= tags
    listed = {one["id"] for one in httpx.get(f"{aliased.url}/v1/models", timeout=60).json()["data"]}
    assert {"jina-embeddings-v4", "their-code", "starter"} <= listed


@pytest.mark.parametrize("name", ["their-code:latest", "their-code/code.passage", "their-code:latest/code.passage"])
def test_a_name_is_read_in_one_way_on_every_path(aliased: Served, name: str) -> None:
    code = Embedder.load("starter-code:Q8_0").encode_document([PASSAGE])
    text = PASSAGE if "passage" in name else "Passage: " + PASSAGE
    bodies: dict[str, dict[str, Any]] = {
        "/api/embed": {"input": text}, "/pooling": {"input": text}, "/embedding": {"content": text},
        "/v2/embed": {"texts": [text]}, "/v1/embeddings": {"input": text, "truncation": True},
    }  # fmt: skip
    for path, body in bodies.items():
        answer = httpx.post(aliased.url + path, json={**body, "model": name}, timeout=60)
        assert np.abs(np.array(vector_in(answer.json())) - code).max() < SAME, path


def test_latest_is_an_alias_as_any_other_on_other_paths(aliased: Served, expected: Floats) -> None:
    body = {"model": "jina-embeddings-v4:latest", "input": PASSAGE, "input_type": "document"}
    answer = httpx.post(f"{aliased.url}/v1/embeddings", json=body, timeout=60)
    assert np.abs(np.array(vector_in(answer.json())) - expected).max() < SAME


@pytest.mark.parametrize("name", ["jina-embeddings-v3", "jina-embeddings-v4:q8", "nomic-embed-text:latest"])
def test_a_name_that_is_not_served_is_never_another_model(aliased: Served, name: str) -> None:
    with (
        ollama.Client(host=aliased.url) as client,
        pytest.raises(ollama.ResponseError, match="this server has starter") as caught,
    ):
        client.embed(model=name, input="a")
    assert caught.value.status_code == 404
