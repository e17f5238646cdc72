"""The memory budget is a bound. Doors by which models could take more than it, each with its test:

    a model beside others that are in use          test_a_model_that_does_not_fit_beside_...
    one beside others that are still being loaded   test_two_models_that_are_loaded_at_once_...
    one that is larger than the whole budget        test_a_model_larger_than_the_budget_...
    a start that loads several (`--preload`)        test_what_is_preloaded_must_fit_together
    an engine that takes more for the same file     test_what_a_model_costs_depends_on_its_engine_...
    idle models, and those that compute for a client that left      test_serve_models
    a container's memory instead of the machine's                   test_cpu, test_container

A refusal is a 503 that says what would be needed; it is no failed load, so nothing backs off.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.contract.serving import FakeEngine, Running, fake_embedder, loader, running, settings

from nestling.errors import NestlingError
from nestling.formats.gguf import GGUFFile
from nestling.models.embedder import Embedder
from nestling.server.core.loading import ENGINE_BYTES, model_cost
from nestling.server.core.model_pool import ModelPool
from nestling.server.core.refusals import UnavailableError
from nestling.server.core.replicas import ONE_DEVICE
from nestling.server.core.service import Service
from nestling.server.settings import MIB


def pool(budget_mb: int, load: Any = None, cost_mb: int = 10) -> ModelPool:
    return ModelPool(
        {ONE_DEVICE: load or loader()}, budget_bytes=budget_mb * MIB, cost_of=lambda _reference: cost_mb * MIB
    )


async def use(models: ModelPool, name: str) -> None:
    async with models.use(name):
        pass


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_model_that_does_not_fit_beside_those_in_use_is_refused_until_they_are_done() -> None:
    loads: list[str] = []

    async def work() -> None:
        models = pool(25, loader(loads=loads))
        async with models.use("first"), models.use("second"):
            for _ in range(2):  # a failed load would not be tried again at once
                with pytest.raises(UnavailableError, match=r"third: needs 10 MiB beside first, second in use \(20 MiB"):
                    await use(models, "third")
            assert [one.reference for one in models.loaded] == ["first", "second"], "nothing was unloaded in vain"
        await use(models, "third")
        assert [one.reference for one in models.loaded] == ["first", "third"], "the second was used longest ago"
        assert await models.close(within_s=5)

    run(work())
    assert loads == ["first", "second", "third"]


def test_a_model_that_computes_for_a_client_that_left_counts_as_in_use() -> None:
    async def work() -> None:
        models = pool(10)
        async with models.use("first") as first:
            pass
        with first.computing(ONE_DEVICE), pytest.raises(UnavailableError):
            await use(models, "second")
        await use(models, "second")
        assert await models.close(within_s=5)

    run(work())


def test_two_models_that_are_loaded_at_once_do_not_both_take_the_same_room() -> None:
    async def work() -> None:
        models = pool(15)
        first, second = await asyncio.gather(use(models, "first"), use(models, "second"), return_exceptions=True)
        assert first is None
        assert isinstance(second, UnavailableError)
        assert "second: needs 10 MiB beside first in use (10 MiB)" in str(second)
        assert await models.close(within_s=5)

    run(work())


def test_a_load_that_fails_gives_its_room_back() -> None:
    answers: list[Any] = [RuntimeError("no processor"), fake_embedder()]

    def load(_reference: str) -> Embedder:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def work() -> None:
        models = pool(10, load)
        with pytest.raises(NestlingError):
            await use(models, "first")
        await use(models, "second")
        assert await models.close(within_s=5)

    run(work())


def test_a_model_larger_than_the_budget_is_refused_with_what_it_needs() -> None:
    async def work() -> None:
        models = pool(9)
        expected = r"^large: needs 10 MiB; the memory budget is 9 MiB \(--memory-budget-mb\)$"
        with pytest.raises(UnavailableError, match=expected):
            await use(models, "large")
        assert await models.close(within_s=5)

    run(work())


@pytest.mark.parametrize(("preload", "fits"), [(False, True), (True, False)])
def test_what_is_preloaded_must_fit_together(*, preload: bool, fits: bool) -> None:
    async def work() -> list[str]:
        wanted = settings(preload=preload, memory_budget_mb=25)
        service = Service(wanted, loader(), cost_of=lambda _reference: 10 * MIB)
        await service.start()
        try:
            await service.ready()
        finally:
            await service.stop()
        return [one.reference for one in service.models.loaded]

    if fits:
        run(work())
    else:
        with pytest.raises(UnavailableError, match="fake-code:Q8_0: needs 10 MiB beside fake-retrieval"):
            run(work())


def test_over_http_it_is_a_503_that_says_so_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    gate.set()
    engine = FakeEngine(gate=gate)
    monkeypatch.setattr("nestling.server.core.service._cost_of", lambda *_: lambda _reference: 10 * MIB)
    with running(loader(lambda: engine), memory_budget_mb=15) as server, ThreadPoolExecutor(1) as clients:
        gate.clear()
        engine.entered.clear()
        first = clients.submit(ask, server, "fake-retrieval")
        assert engine.entered.wait(20)
        refused = ask(server, "fake-code")
        gate.set()
        assert first.result().status_code == 200
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert "needs 10 MiB beside fake-retrieval:Q8_0 in use (10 MiB)" in refused.json()["error"]["message"]
        assert ask(server, "fake-code").status_code == 200
        assert server.service.metrics.value("nestling_models_bytes") == 10 * MIB


def ask(server: Running, name: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/embeddings", json={"model": name, "input": "a"}, timeout=20)


COSTS = [
    ("F16", "openvino", None, "auto", 4.0),
    ("F16", "openvino", None, "bf16", 2.0),
    ("Q8_0", "openvino", None, "auto", 1.125),
    ("Q8_0", "openvino", None, "float32", 4.0),
    ("Q4_K_M", "openvino", None, "int8-rows", 1.125),
    ("Q4_K_M", "reference", None, "auto", 4.0),
    ("Q4_K_M", "torch", "cpu", "auto", 4.0),
    ("Q4_K_M", "torch", "cpu", "int8-rows", 1.125),
    ("Q4_K_M", "torch", "cuda", "auto", 0.0),
    ("Q8_0", "llamacpp", None, "auto", 34 / 32),
    ("F16", "llamacpp", None, "auto", 2.0),
]
"""File type, engine, device, arithmetic, bytes of a weight; biases and norms are a thousandth of the weights."""


@pytest.mark.parametrize(("kind", "engine", "device", "arithmetic", "weight_bytes"), COSTS)
def test_what_a_model_costs_depends_on_its_engine_and_arithmetic(
    tiny_models: dict[str, Path], kind: str, engine: str, device: str | None, arithmetic: str, weight_bytes: float
) -> None:
    file = GGUFFile.open(tiny_models[kind])
    layers = [one for one in file.tensors.values() if one.name.startswith("blk.") and len(one.shape) > 1]
    stored = sum(one.size_bytes for one in file.tensors.values() if not one.name.startswith("blk."))
    weights = weight_bytes * sum(prod(one.shape) for one in layers)
    found = model_cost(str(tiny_models[kind]), engine, device, arithmetic) - ENGINE_BYTES - stored
    assert weights <= found <= 1.01 * weights


def test_auto_costs_what_its_engine_does(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tiny_models["Q8_0"])
    monkeypatch.setattr("nestling.server.core.loading.preferred", lambda _device: ("llamacpp", "a test's"))
    assert model_cost(path) == model_cost(path, "llamacpp") < model_cost(path, "reference")


def test_a_base_costs_its_adapters_too(starter_q8: Path) -> None:
    base = model_cost("starter-base:Q8_0", "llamacpp")
    adapters = [path.stat().st_size for path in starter_q8.parent.glob("adapter-*.gguf")]
    assert len(adapters) == 3
    assert base > model_cost(str(starter_q8), "llamacpp") + 0.9 * sum(adapters)
