"""MaxSim by hand, packed token vectors, and the order of candidates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf
from tests.command_line import nestling
from tests.unit.test_projector import WIDTH, write_head

from nestling.errors import TextError, UsageError
from nestling.models.embedder import Embedder
from nestling.models.reranking import ranked, token_scores
from nestling.vectors import from_int8, from_ubinary, maxsim, normalise, to_int8, to_ubinary

DOCUMENTS = ["the beach", "in another", "the beach in the rain", "a"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_head(tmp_path)
    return tiny_gguf.write(tmp_path / "m.gguf")


def rows(*values: list[float]) -> Any:
    return np.array(values, np.float32)


def test_maxsim_is_the_sum_of_the_nearest() -> None:
    query = rows([1, 0], [0, 1])
    near, far = rows([1, 0], [0.6, 0.8]), rows([-1, 0])
    np.testing.assert_allclose(maxsim(query, [near, far]), [1.8, -1.0], atol=1e-7)
    np.testing.assert_allclose(token_scores(query, [near, far]), [0.9, -0.5], atol=1e-7)
    assert maxsim(query, []).shape == (0,)


def test_packed_vectors_keep_the_scores() -> None:
    """int8 rounds to 1/127 of a row's largest component: 0.01 a cosine; signs still tell near from far."""
    rng = np.random.default_rng(5)
    query = normalise(rng.standard_normal((6, 128), np.float32))
    near = normalise(np.repeat(query, 3, 0) + rng.standard_normal((18, 128), np.float32) * np.float32(0.05))
    far = normalise(rng.standard_normal((18, 128), np.float32))
    exact = token_scores(query, [near, far])
    whole = token_scores(query, [from_int8(to_int8(one)) for one in (near, far)])
    signs = token_scores(query, [from_ubinary(to_ubinary(one)) for one in (near, far)])
    np.testing.assert_allclose(whole, exact, atol=0.01)
    assert signs[0] > signs[1] + 0.3
    assert (to_int8(near).nbytes, to_ubinary(near).nbytes) == (near.nbytes / 4, near.nbytes / 32)
    np.testing.assert_allclose(np.linalg.norm(from_ubinary(to_ubinary(near)), axis=1), 1, atol=1e-6)


def test_equal_scores_keep_their_order() -> None:
    assert [one.index for one in ranked(np.array([0.5, 0.9, 0.5, 0.9]))] == [1, 3, 0, 2]
    assert [one.index for one in ranked(np.array([0.5, 0.9]), 1)] == [1]
    assert ranked(np.empty(0)) == []
    with pytest.raises(UsageError, match="top_n=0: expected at least 1"):
        ranked(np.array([0.5]), 0)


def test_candidates_go_by_maxsim_of_their_tokens(path: Path) -> None:
    model = Embedder.load(path, engine="reference")
    best = model.rerank("beach", DOCUMENTS)
    query = model.encode_tokens(["beach"], prompt_name="query")[0].astype(np.float64)
    documents = model.encode_tokens(DOCUMENTS, prompt_name="passage")
    expected = [float((query @ one.T).max(1).mean()) for one in documents]
    assert [one.index for one in best] == sorted(range(4), key=lambda place: -expected[place])
    np.testing.assert_allclose([one.score for one in best], sorted(expected, reverse=True), atol=1e-6)
    assert model.rerank("beach", DOCUMENTS, top_n=2) == best[:2]
    assert model.rerank("beach", []) == []


def test_by_cosine_no_head_is_needed(tmp_path: Path) -> None:
    model = Embedder.load(tiny_gguf.write(tmp_path / "m.gguf"), engine="reference")
    with pytest.raises(UsageError, match="nestling multivector"):
        model.rerank("beach", DOCUMENTS)
    best = model.rerank("beach", DOCUMENTS, scoring="cosine")
    expected = (model.encode_query(["beach"]) @ model.encode_document(DOCUMENTS).T)[0]
    np.testing.assert_allclose([one.score for one in best], sorted(expected.tolist(), reverse=True), atol=1e-6)
    assert model.rerank("beach", [], scoring="cosine") == []


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"query": " "}, UsageError, "query: the text is empty"),
        ({"documents": ["a", ""]}, TextError, "input 1: the text is empty"),
        ({"scoring": "bm25"}, UsageError, "maxsim, cosine"),
        ({"top_n": 0}, UsageError, "top_n=0"),
    ],
)
def test_bad_input_is_named(path: Path, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = Embedder.load(path, engine="reference")
    with pytest.raises(kind, match=message):
        model.rerank(**{"query": "a", "documents": ["b"], **arguments})


def test_the_command_ranks_lines(path: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(DOCUMENTS), "utf-8")
    arguments: list[str | Path] = [
        "rerank",
        "beach",
        "--file",
        tmp_path / "lines.txt",
        "--model",
        path,
        "--engine",
        "reference",
    ]
    best = Embedder.load(path, engine="reference").rerank("beach", DOCUMENTS)
    answer = json.loads(nestling(*arguments, "--top-n", "2", "--json").out)
    assert [one["index"] for one in answer["results"]] == [one.index for one in best[:2]]
    assert answer["results"][0]["text"] == DOCUMENTS[best[0].index]
    assert answer["scoring"] == "maxsim"
    table = nestling(*arguments).out
    assert f"{best[0].score:.4f}" in table
    done = nestling(*arguments, "--scoring", "bm25")
    assert (done.code, "maxsim, cosine" in done.err) == (2, True)


def test_the_command_embeds_every_token(path: Path) -> None:
    arguments: list[str | Path] = ["embed", "the beach", "a", "--model", path, "--engine", "reference", "--multivector"]
    model = Embedder.load(path, engine="reference")
    expected = model.encode_tokens(["the beach", "a"])
    for form, read in (
        ("array", lambda out: json.loads(out)),
        ("json", lambda out: [one["embeddings"] for one in json.loads(out)["data"]]),
        ("jsonl", lambda out: [json.loads(line)["embeddings"] for line in out.splitlines()]),
        ("text", lambda out: [[row.split() for row in text.split("\n")] for text in out.strip("\n").split("\n\n")]),
    ):
        done = nestling(*arguments, "--format", form)
        assert done.code == 0, done.err
        found = [np.array(one, np.float32) for one in read(done.out)]
        assert [one.shape for one in found] == [(len(one), WIDTH) for one in expected]
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("options", "word"), [(("--dimensions", "32"), "--dimensions"), (("--format", "npy"), "npy")])
def test_what_token_vectors_cannot_be_is_refused(path: Path, options: tuple[str, ...], word: str) -> None:
    done = nestling("embed", "a", "--model", path, "--multivector", *options)
    assert done.code == 2
    assert word in done.err


def test_the_command_makes_a_head(small_checkpoint: Path, tmp_path: Path) -> None:
    done = nestling("multivector", small_checkpoint, "--task", "code", "--family", "mine", "--out", tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "mine-text-code-multivector.gguf").exists()
    again = json.loads(
        nestling("multivector", small_checkpoint, "-t", "code", "--family", "mine", "-o", tmp_path, "--json").out
    )
    assert [one["fresh"] for one in again] == [False]
