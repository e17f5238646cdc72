"""Loading once, giving back, staying within the budget."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.contract.serving import FakeEngine, fake_embedder, loader

from nestling.errors import EngineError, ModelNotFoundError
from nestling.models.embedder import Embedder
from nestling.server.core.loading import ENGINE_BYTES, model_cost
from nestling.server.core.model_pool import ModelPool
from nestling.server.core.replicas import ONE_DEVICE, self_test


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_model_is_loaded_once_however_many_ask_for_it() -> None:
    loads: list[str] = []

    async def work() -> None:
        pool = ModelPool({ONE_DEVICE: loader(loads=loads)}, budget_bytes=1 << 30)

        async def use() -> Any:
            async with pool.use("fake-retrieval") as model:
                return model

        assert len({id(model) for model in await asyncio.gather(*(use() for _ in range(10)))}) == 1
        assert await pool.close(within_s=5)

    run(work())
    assert loads == ["fake-retrieval"]


def test_room_is_made_before_a_model_is_loaded_unless_others_are_in_use() -> None:
    loads: list[str] = []
    engines: dict[str, FakeEngine] = {}

    def load(reference: str) -> Embedder:
        loads.append(f"{reference} beside {sorted(name for name, one in engines.items() if not one.closed)}")
        return fake_embedder(engine=engines.setdefault(reference, FakeEngine()))

    async def work() -> list[str]:
        pool = ModelPool({ONE_DEVICE: load}, budget_bytes=25, cost_of=lambda _reference: 10)
        async with pool.use("in use"):
            for name in ("first", "second"):
                async with pool.use(name):
                    pass
        names = [model.reference for model in pool.loaded]
        assert await pool.close(within_s=5)
        return names

    assert run(work()) == ["in use", "second"]
    assert loads == ["in use beside []", "first beside ['in use']", "second beside ['in use']"]


def test_a_model_that_computes_for_a_client_that_left_is_in_use() -> None:
    async def work() -> None:
        pool = ModelPool({ONE_DEVICE: loader()}, budget_bytes=1, idle_s=0)
        async with pool.use("fake-code") as model:
            pass
        with model.computing(ONE_DEVICE):
            pool.unload_idle()
            assert pool.loaded == [model]
        pool.unload_idle()
        assert pool.loaded == []
        assert await pool.close(within_s=5)

    run(work())


def test_closing_a_model_does_not_hold_up_the_event_loop() -> None:
    gate = threading.Event()

    class Slow(FakeEngine):
        """Its close waits, as for a batch that is running."""

        def close(self) -> None:
            assert gate.wait(20)
            super().close()

    async def work() -> None:
        pool = ModelPool({ONE_DEVICE: loader(Slow)}, budget_bytes=1, idle_s=0)
        async with pool.use("fake-code"):
            pass
        pool.unload_idle()
        assert pool.loaded == []
        assert not await pool.close(within_s=0.05), "it is still closing"
        gate.set()

    run(work())


@pytest.mark.parametrize("error", [EngineError("nan"), RuntimeError("no processor"), TypeError("x"), OSError("disk")])
def test_a_self_test_that_raises_anything_closes_the_model_and_is_an_engine_error(error: Exception) -> None:
    engine = FakeEngine()

    class Broken(FakeEngine):
        def pool(self, *_: Any, **__: Any) -> Any:
            raise error

        def close(self) -> None:
            engine.closed = True

    async def work() -> None:
        pool = ModelPool({ONE_DEVICE: loader(Broken)}, budget_bytes=1)
        with pytest.raises(EngineError, match=str(error)):
            async with pool.use("fake-code"):
                pass
        assert await pool.close(within_s=5)

    run(work())
    assert engine.closed


def test_idle_models_are_given_back_and_loaded_again_when_asked_for() -> None:
    loads: list[str] = []

    async def work() -> None:
        pool = ModelPool({ONE_DEVICE: loader(loads=loads)}, budget_bytes=1 << 30, idle_s=0)
        async with pool.use("fake-code") as model:
            pool.unload_idle()
            assert pool.loaded == [model]
        pool.unload_idle()
        assert pool.loaded == []
        async with pool.use("fake-code"):
            assert model.embedder.engine.closed  # type: ignore[attr-defined]
        assert await pool.close(within_s=5)

    run(work())
    assert loads == ["fake-code", "fake-code"]


def test_a_load_that_failed_is_tried_again_after_a_pause_that_grows() -> None:
    answers: list[Any] = [ModelNotFoundError("none"), RuntimeError("no processor"), fake_embedder()]

    def load(_reference: str) -> Embedder:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def ask(pool: ModelPool) -> None:
        async with pool.use("x"):
            pass

    async def work() -> None:
        now = [0.0]
        pool = ModelPool({ONE_DEVICE: load}, budget_bytes=1, clock=lambda: now[0])
        for error, pause in ((ModelNotFoundError, 1.0), (EngineError, 2.0)):
            left = len(answers)
            for _ in range(3):
                with pytest.raises(error):
                    await ask(pool)
            assert len(answers) == left - 1, "one try, and its error again"
            now[0] += pause - 0.01
            with pytest.raises(error):
                await ask(pool)
            assert len(answers) == left - 1
            now[0] += 0.02
        await ask(pool)
        assert await pool.close(within_s=5)

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


def test_what_a_model_takes_is_known_from_its_file(starter_q8: Path) -> None:
    """At least its bytes in the file, whose Q8_0 is as large as what the engine makes of it."""
    weights = model_cost(str(starter_q8)) - ENGINE_BYTES
    size = starter_q8.stat().st_size
    assert 0.9 * size < weights < 2.1 * size, "the tensors alone, and those of F16 or F32 in a byte each"
