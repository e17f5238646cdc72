"""nestling's lines of docs/compare.md: the requests, sent. NaN and a full queue: tests/fault/test_server_faults.py."""

import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.conftest import Served

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"
SERVERS = ["Ollama", "TEI", "llama-server", "nestling"]
LONG = "word " * 40_000


def test_every_request_has_a_line_of_each_server_and_a_source() -> None:
    sections = re.split(r"^## \d+\. ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(sections) == 10
    for section in sections:
        lines = re.split(r"^- ", section.split("\n## ")[0], flags=re.MULTILINE)[1:]
        assert [re.findall(r"\*\*(.+?)\*\*", line)[0] for line in lines] == SERVERS
        assert not [line for line in lines[:3] if "Source:" not in line and "not known" not in line]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/embeddings", {"input": ["a", LONG]}, 400, "input 1: "),
        ("/embed", {"inputs": [LONG]}, 413, "input 0: "),
        ("/v1/embeddings", {"input": "a", "dimensions": 100}, 400, "32, 64, 128, 256"),
        ("/api/embed", {"input": "a", "dimensions": 100}, 400, "32, 64, 128, 256"),
        ("/embed", {"inputs": "a", "dimensions": 100}, 413, "32, 64, 128, 256"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 400, "--token-input model"),
        ("/embedding", {"content": [1, 2]}, 400, "--token-input model"),
        ("/v1/embeddings", {"input": ["a", ""]}, 400, "input 1: the text is empty"),
        ("/api/embed", {"input": ["a", ""]}, 400, "input 1: the text is empty"),
        ("/api/embed", {"input": ""}, 200, '"embeddings":[]'),
        ("/v1/embeddings", {"input": "a", "model": "text-embedding-3-small"}, 404, "this server has starter"),
        ("/api/embed", {"input": "a", "model": "nomic-embed-text:latest"}, 404, "this server has starter"),
        ("/v1/embeddings", {"input": "a" * 3_000_000}, 413, "2000000"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, 413, "2048"),
    ],
)
def test_what_is_refused_and_how(served: Served, path: str, body: dict[str, Any], status: int, said: str) -> None:
    answer = httpx.post(served.url + path, json=body, timeout=60)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text[:300]


def test_a_long_text_is_cut_where_the_api_cuts(served: Served) -> None:
    body = {"input": "word " * 200, "options": {"num_ctx": 64}}
    cut = httpx.post(f"{served.url}/api/embed", json=body, timeout=60).json()
    assert cut["prompt_eval_count"] == 64


def test_mixed_lengths_change_no_vector(served: Served) -> None:
    texts = ["a", "a sentence of some words " * 20, "two words"]
    together = vectors(served, {"input": texts})
    alone = np.concatenate([vectors(served, {"input": [text]}) for text in texts])
    assert (together * alone).sum(1).min() > 0.9999  # int8 engine, another batch


@pytest.mark.parametrize(
    ("path", "body", "reported"),
    [
        ("/api/embed", {"input": "Query: a"}, False),
        ("/embed", {"inputs": "Query: a"}, False),
        ("/embed", {"inputs": "Query: a", "prompt_name": "query"}, True),
        ("/embedding", {"content": "Query: a"}, False),
        ("/pooling", {"input": "Query: a"}, False),
        ("/v1/embeddings", {"input": "Query: a", "truncation": True}, False),
        ("/v1/embeddings", {"input": "Query: a"}, True),
        ("/v1/embeddings", {"input": "Query: a", "task": "retrieval.query"}, True),
        ("/v1/embeddings", {"input": "Query: a", "prompt_name": "raw"}, False),
        ("/v2/embed", {"texts": ["Query: a"], "input_type": "search_query"}, True),
    ],
)
def test_a_typed_prefix_stays_alone_or_is_reported(
    served: Served, path: str, body: dict[str, Any], *, reported: bool
) -> None:
    answer = httpx.post(served.url + path, json=body, timeout=60)
    assert (answer.status_code, "x-nestling-warning" in answer.headers) == (200, reported)


def vectors(served: Served, body: dict[str, Any]) -> np.ndarray[Any, Any]:
    answer = httpx.post(f"{served.url}/v1/embeddings", json=body, timeout=60).json()
    return np.array([one["embedding"] for one in answer["data"]])
