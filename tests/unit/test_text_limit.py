"""`--max-text-tokens`: an operator's limit below the model's.

Doors by which a longer text could come in: a text, token ids, a late-chunked document, multi-vectors, a rerank
candidate; cut on request; any task of a model with adapters. And results of a model that is no longer loaded.
"""

from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.serving import ByteTokenizer, FakeEngine, fake_embedder, fake_spec, loader, running

from nestling.engine.protocol import Item
from nestling.errors import TextError
from nestling.models.embedder import Embedder
from nestling.server.core.result_cache import ResultCache
from nestling.spec import Task

LIMIT = 100
LONG = "x" * 150
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a text": ("/v1/embeddings", {"input": ["short", LONG]}),
    "token ids": ("/v1/embeddings", {"input": [[97] * 150]}),
    "a document": ("/v1/embeddings", {"input": ["x" * 75, "y" * 75], "late_chunking": True}),
    "a candidate": ("/v1/rerank", {"query": "q", "documents": ["short", LONG], "scoring": "cosine"}),
}


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
def test_a_longer_text_is_refused_with_the_limit(path: str, body: dict[str, Any]) -> None:
    with running(max_text_tokens=LIMIT, token_input="model") as server:
        answer = httpx.post(server.url + path, json=body)
        assert answer.status_code == 400, answer.text
        assert str(LIMIT) in answer.text
        [shown] = {one["max_model_len"] for one in httpx.get(f"{server.url}/v1/models").json()["data"]}
        assert shown == LIMIT


def test_it_is_cut_on_request() -> None:
    with running(max_text_tokens=LIMIT) as server:
        found = httpx.post(f"{server.url}/v1/embeddings", json={"input": LONG, "truncate": True}).json()
        assert found["usage"]["prompt_tokens"] == LIMIT


def test_a_limit_above_the_models_changes_nothing() -> None:
    embedder = fake_embedder()
    assert embedder.limited(10_000).spec == embedder.spec


def test_every_task_of_a_base_has_the_limit() -> None:
    specs = [fake_spec(task) for task in Task]
    base = Embedder(specs[0], ByteTokenizer(), FakeEngine(), adapters=specs).limited(LIMIT)  # type: ignore[arg-type]
    assert base.tasks == tuple(Task)
    for task in Task:
        with pytest.raises(TextError, match=f"takes {LIMIT}"):
            base.for_task(task).tokenize([LONG])
        assert base.for_task(task).spec == replace(fake_spec(task), max_tokens=LIMIT)


def test_a_model_that_was_loaded_again_does_not_answer_from_what_the_old_one_gave() -> None:
    """Its file may have been replaced under the same name, even with the same time and size."""
    load, cache, item = loader(), ResultCache(1 << 20), Item(np.arange(3, dtype=np.int32))
    old, new = load("fake-retrieval"), load("fake-retrieval")
    cache.put(old.identity, item, np.ones(4, np.float32))
    assert cache.get(old.identity, item) is not None
    assert cache.get(new.identity, item) is None
    assert cache.get(old.for_task("retrieval").identity, item) is not None


def test_items_of_equal_ids_and_other_rows_are_other_results() -> None:
    cache, ids = ResultCache(1 << 20), np.arange(3, dtype=np.int32)
    cache.put(b"m", Item(ids), np.ones(4, np.float32))
    assert cache.get(b"m", Item(ids, key=b"an image")) is None
