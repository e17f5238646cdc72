"""docs/multivectors.md as a reader would run it, and token vectors, late chunks and rankings over HTTP."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.contract.conftest import Served
from tests.contract.serving import running
from tests.contract.snippets import ADDRESS
from tests.contract.test_clients import SAME, _floats, cosines, post, rows

from nestling import Embedder
from nestling.vectors import Floats, from_ubinary, normalise

DOCUMENT = (Path(__file__).parents[2] / "docs" / "multivectors.md").read_text("utf-8")
PROGRAMS = re.findall(r"^```(python|bash)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for line in re.findall(r"^    (nestling .*)$", DOCUMENT, re.MULTILINE) if "path/to" not in line]
TEXTS = ["A socket is opened with socket() and connect().", "ls lists files."]
CHUNKS = ["Berlin is the capital of Germany. ", "It has 3.6 million inhabitants. ", "海滩上美丽的日落。"]


@pytest.fixture(scope="module")
def embedder(served: Served) -> Embedder:
    assert served.url
    return Embedder.load("starter-retrieval:Q8_0")


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program_of_the_document(served: Served, number: int) -> None:
    language, code = PROGRAMS[number]
    program = {"bash": ["bash", "-c"], "python": [sys.executable, "-c"]}[language]
    done = subprocess.run([*program, code.replace(ADDRESS, served.url)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stdout
    assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_document(served: Served, tmp_path: Path, command: str) -> None:
    assert served.url
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    code = [sys.executable, "-c", "from nestling.cli import main; main()", *shlex.split(command)[1:]]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_document_has_an_example_of_each() -> None:
    assert len(PROGRAMS) >= 4
    assert len(COMMANDS) >= 3
    for word in ("encode_tokens", "encode_chunks", "rerank(", "extra_body", "/v1/rerank"):
        assert word in DOCUMENT


def tokens(answer: dict[str, Any]) -> list[Floats]:
    assert [item["object"] for item in answer["data"]] == ["embeddings"] * len(answer["data"])
    return [np.array([_floats(row) for row in item["embeddings"]], np.float32) for item in answer["data"]]


@pytest.mark.parametrize("form", [{}, {"encoding_format": "base64"}, {"embedding_type": "base64"}])
def test_token_vectors_are_the_librarys(served: Served, embedder: Embedder, form: dict[str, str]) -> None:
    answer = post(served, {"input": TEXTS, "prompt_name": "passage", "return_multivector": True, **form})
    expected = embedder.encode_tokens(TEXTS, prompt_name="passage")
    found = tokens(answer)
    assert [one.shape for one in found] == [one.shape for one in expected]
    assert min(cosines(*pair).min() for pair in zip(found, expected, strict=True)) > SAME
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


def test_packed_token_vectors(served: Served) -> None:
    body = {"input": TEXTS, "return_multivector": True}
    exact = tokens(post(served, body))
    packed = {form: tokens(post(served, {**body, "embedding_type": form})) for form in ("int8", "binary", "ubinary")}
    for place, one in enumerate(exact):
        assert cosines(normalise(packed["int8"][place]), one).min() > 0.999
        assert packed["ubinary"][place].shape == (len(one), one.shape[1] / 8)
        assert np.array_equal(packed["binary"][place], packed["ubinary"][place] - 128)
        signs = from_ubinary(packed["ubinary"][place].astype(np.uint8))
        assert np.mean((signs > 0) == (one > 0)) > 0.95


def test_late_chunks_are_the_librarys(served: Served, embedder: Embedder) -> None:
    ends = np.cumsum([0, *map(len, CHUNKS)]).tolist()
    spans = list(pairwise(ends))
    expected = embedder.encode_chunks("".join(CHUNKS), spans=spans, truncate_dim=128)
    body = {"input": CHUNKS, "model": "starter/retrieval.passage", "late_chunking": True, "dimensions": 128}
    answer = post(served, body)
    assert cosines(rows(answer), expected.vectors).min() > SAME
    assert answer["usage"]["prompt_tokens"] == sum(expected.counts)
    apart = rows(post(served, {**body, "late_chunking": False}))
    assert cosines(apart, expected.vectors)[1] < SAME


def test_one_late_chunk_is_the_text(served: Served) -> None:
    late = rows(post(served, {"input": TEXTS[:1], "late_chunking": True}))
    assert cosines(late, rows(post(served, {"input": TEXTS[:1]})))[0] > SAME


def test_openai_gets_both(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        late = client.embeddings.create(model="starter", input=CHUNKS, extra_body={"late_chunking": True})
        assert [len(item.embedding) for item in late.data] == [256] * 3
        with pytest.raises(openai.BadRequestError, match="dimensions: not together with return_multivector"):
            client.embeddings.create(
                model="starter",
                input="a",
                dimensions=64,
                encoding_format="float",
                extra_body={"return_multivector": True},
            )


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
@pytest.mark.parametrize("scoring", [None, "maxsim", "cosine"])
def test_ranking(served: Served, embedder: Embedder, path: str, scoring: str | None) -> None:
    documents = [*TEXTS, {"text": "Open a file with open()."}]
    body = {"model": "starter", "query": "How do I open a socket?", "documents": documents, "scoring": scoring}
    answer = post(served, body, path)
    expected = embedder.rerank(str(body["query"]), [*TEXTS, "Open a file with open()."], scoring=scoring or "maxsim")
    assert [one["index"] for one in answer["results"]] == [one.index for one in expected]
    scores = [one["relevance_score"] for one in answer["results"]]
    np.testing.assert_allclose(scores, [one.score for one in expected], atol=0.01)
    assert answer["scoring"] == (scoring or "maxsim")
    assert answer["usage"]["total_tokens"] > 0
    assert "document" not in answer["results"][0]
    best = post(served, {**body, "top_n": 1, "return_documents": True}, path)["results"]
    assert len(best) == 1
    assert best[0]["document"]["text"] == [*TEXTS, "Open a file with open()."][best[0]["index"]]


EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "dimensions": (
        EMBEDDINGS,
        {"input": "a", "return_multivector": True, "dimensions": 64},
        "dimensions",
        "not together",
    ),
    "both": (
        EMBEDDINGS,
        {"input": "a", "return_multivector": True, "late_chunking": True},
        "late_chunking",
        "together",
    ),
    "an empty chunk": (EMBEDDINGS, {"input": ["a", ""], "late_chunking": True}, "input", "input 1: the text is empty"),
    "an accent": (
        EMBEDDINGS,
        {"input": ["cafe", "\u0301s"], "late_chunking": True},
        "input",
        r"input\[0\]=.*splits the character",
    ),
    "a family": (EMBEDDINGS, {"input": ["a 👨\u200d", "👩 b"], "late_chunking": True}, "input", "splits the character"),
    "half of a token": (
        EMBEDDINGS,
        {"input": ["a ", "th", "e cat"], "late_chunking": True},
        "input",
        r"input\[1\]=.*no token",
    ),
    "too long": (
        EMBEDDINGS,
        {"input": ["word " * 33_000], "late_chunking": True},
        "input",
        "takes 32768; late chunking never truncates",
    ),
    "a cut": (
        EMBEDDINGS,
        {"input": ["a"], "late_chunking": True, "truncate_prompt_tokens": 9},
        "truncate_prompt_tokens",
        "",
    ),
    "ids": (EMBEDDINGS, {"input": [1, 2], "late_chunking": True}, "input", "token ids"),
    "too many tokens": (
        EMBEDDINGS,
        {"input": ["word " * 30_000] * 3, "return_multivector": True},
        "input",
        "may have 65536",
    ),
    "no candidates": (RERANK, {"query": "a", "documents": []}, "documents", "at least one"),
    "an empty candidate": (
        RERANK,
        {"query": "a", "documents": ["b", " "]},
        "documents",
        r"documents\[1\]: the text is empty",
    ),
    "an empty query": (RERANK, {"query": "", "documents": ["b"]}, "query", "the text is empty"),
    "no query": (RERANK, {"documents": ["b"]}, "query", "required"),
    "top_n": (RERANK, {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", "at least 1"),
    "scoring": (RERANK, {"query": "a", "documents": ["b"], "scoring": "bm25"}, "scoring", "maxsim, cosine"),
    "a role": (RERANK, {"query": "a", "documents": ["b"], "model": "starter/retrieval.query"}, "model", "a role"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(served: Served, name: str) -> None:
    path, body, param, message = REFUSED[name]
    answer = httpx.post(served.url + path, json=body, timeout=60)
    assert answer.status_code == (413 if name == "too many tokens" else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert re.search(message, error["message"]), error["message"]
    assert "\n" not in error["message"]


def test_half_of_a_surrogate_pair_is_refused(served: Served) -> None:
    body = rb'{"input": ["a \ud83d", "\ude00 b"], "late_chunking": true}'
    answer = httpx.post(served.url + EMBEDDINGS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (EMBEDDINGS, {"input": "a", "return_multivector": True}, "return_multivector"),
        (RERANK, {"query": "a", "documents": ["b"]}, "scoring"),
    ],
)
def test_a_model_without_the_head_says_how_to_get_one(path: str, body: dict[str, Any], param: str) -> None:
    with running() as server:
        answer = httpx.post(server.url + path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert answer.json()["error"]["code"] == "no_multivector"
        assert httpx.post(server.url + EMBEDDINGS, json={"input": "a"}).status_code == 200


def test_the_openapi_document_has_the_new_fields(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    fields = {
        path: paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for path in (EMBEDDINGS, RERANK)
    }
    assert "one document" in fields[EMBEDDINGS]["late_chunking"]["description"]
    assert "every token" in fields[EMBEDDINGS]["return_multivector"]["description"]
    assert {"query", "documents", "top_n", "return_documents", "scoring"} <= fields[RERANK].keys()
