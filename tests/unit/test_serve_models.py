"""Loading once, giving back, staying within the budget."""

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.contract.serving import FakeEngine, fake_embedder, loader

from nestling.errors import EngineError, ModelNotFoundError
from nestling.models.embedder import Embedder
from nestling.server.core import model_pool
from nestling.server.core.model_pool import ModelPool, self_test


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Resident memory as the pool reads it: it grows by 10 with every second reading."""
    readings = [0]

    def read() -> int:
        readings.append(readings[-1] + (10 if len(readings) % 2 == 0 else 0))
        return readings[-1]

    monkeypatch.setattr(model_pool, "resident_bytes", read)
    return readings


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_model_is_loaded_once_however_many_ask_for_it() -> None:
    loads: list[str] = []

    async def work() -> None:
        pool = ModelPool(loader(loads=loads), budget_bytes=1 << 30)

        async def use() -> Any:
            async with pool.use("fake-retrieval") as model:
                return model

        assert len({id(model) for model in await asyncio.gather(*(use() for _ in range(10)))}) == 1
        pool.close()

    run(work())
    assert loads == ["fake-retrieval"]


def test_over_the_budget_the_least_recently_used_goes_unless_it_is_in_use(memory: list[int]) -> None:
    async def work() -> list[str]:
        pool = ModelPool(loader(), budget_bytes=25)
        async with pool.use("fake-retrieval"):
            for name in ("fake-code", "fake-text-matching"):
                async with pool.use(name):
                    pass
        names = [model.reference for model in pool.loaded]
        pool.close()
        return names

    assert run(work()) == ["fake-retrieval", "fake-text-matching"]
    assert memory


def test_idle_models_are_given_back_and_loaded_again_when_asked_for() -> None:
    loads: list[str] = []

    async def work() -> None:
        pool = ModelPool(loader(loads=loads), budget_bytes=1 << 30, idle_s=0)
        async with pool.use("fake-code") as model:
            pool.unload_idle()
            assert pool.loaded == [model]
        pool.unload_idle()
        assert pool.loaded == []
        assert model.embedder.engine.closed  # type: ignore[attr-defined]
        async with pool.use("fake-code"):
            pass
        pool.close()

    run(work())
    assert loads == ["fake-code", "fake-code"]


def test_a_load_that_failed_is_tried_again() -> None:
    answers: list[Any] = [ModelNotFoundError("none"), RuntimeError("no processor"), fake_embedder()]

    def load(_reference: str) -> Embedder:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def work() -> None:
        pool = ModelPool(load, budget_bytes=1)
        for error in (ModelNotFoundError, EngineError):
            with pytest.raises(error):
                async with pool.use("x"):
                    pass
        async with pool.use("x"):
            pass
        pool.close()

    run(work())


class Constant(FakeEngine):
    """The same for every text."""

    def pool(self, items: Any, *, adapters: Any = ()) -> Any:
        return np.ones((len(items), 64), np.float32)


class Neighbourly(FakeEngine):
    """Another vector in company."""

    def pool(self, items: Any, *, adapters: Any = ()) -> Any:
        rows = super().pool(items, adapters=adapters)
        return rows + rows.sum(0, keepdims=True) * (len(items) > 1)


@pytest.mark.parametrize(("engine", "named"), [(Constant(), "same vector"), (Neighbourly(), "cosine")])
def test_the_self_test_finds_engines_that_are_wrong(engine: FakeEngine, named: str) -> None:
    self_test(fake_embedder())
    with pytest.raises(EngineError, match=named):
        self_test(fake_embedder(engine=engine))
