"""A server on several devices: one queue, a replica on each, and a device that is lost while it serves.

What goes wrong on a device, each with its test:

    a batch fails and the engine is reloaded           test_a_failure_on_one_device_...
    it cannot be reloaded: the device is lost          test_requests_of_a_lost_device_..., test_a_lost_device_over_http
    the same during a long text                        test_a_long_text_on_a_lost_device_...
    the last one cannot be reloaded                    test_the_last_device_is_never_lost
    it is the file that cannot be reloaded             test_a_damaged_file_is_not_a_lost_device
    the server stops at that moment                    test_stopping_waits_..., test_abandoning_...
    an image was read for the lost one                 test_an_image_takes_the_tower_...
    one does not start, or computes otherwise          test_a_server_does_not_start_..., test_replicas_of_...

The list of devices itself is in test_devices.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, cast

import httpx
import numpy as np
import pytest
from tests.contract.serving import ROWS, FakeEngine, fake_embedder, running, settings

from nestling.engine.protocol import Item
from nestling.errors import EngineError, GGUFError
from nestling.models.embedder import Embedder
from nestling.models.vision import ImageItem, Vision
from nestling.server.core.fair_queue import Batch, Job, Limits
from nestling.server.core.loading import loads, named_devices
from nestling.server.core.metrics import Metrics
from nestling.server.core.model_pool import Load, ModelPool
from nestling.server.core.replicas import Model
from nestling.server.core.scheduler import Scheduler

NAMES = ("cpu:0", "cpu:1")
GONE = EngineError("m.gguf: cuda:1: computing: CUDA error: device unplugged")


@dataclass
class Card(FakeEngine):
    """An engine that fails while `fault` is set, and records the threads it ran in."""

    fault: Exception | None = None
    arithmetic: str = "bf16"
    threads: set[str] = field(default_factory=set)

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Any:
        self.threads.add(threading.current_thread().name)
        if self.fault:
            self.entered.set()
            raise self.fault
        return super().pool(items, adapters=adapters)

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Any]:
        """A long text, in two pieces."""
        for _ in range(2):
            if self.fault:
                raise self.fault
            yield len(item) / 2
        return ROWS[item.ids]


def text(length: int) -> Item:
    return Item(np.full(length, 97, np.int32))


def pool_of(engines: dict[str, list[Any]], **more: Any) -> ModelPool:
    """A pool whose devices load these engines, one after another; an exception in place of one is raised."""

    def load_on(device: str) -> Load:
        def load(_reference: str) -> Embedder:
            one = engines[device].pop(0)
            if isinstance(one, Exception):
                raise one
            return fake_embedder(engine=one)

        return load

    return ModelPool({device: load_on(device) for device in engines}, budget_bytes=1 << 30, **more)


def serve(engines: dict[str, list[Any]], work: Callable[[Scheduler, Model, ModelPool], Any]) -> Any:
    """Run `work` on a model with these engines and a scheduler, which is stopped in the end."""

    async def run() -> Any:
        pool, metrics = pool_of(engines, cost_of=lambda _: 10), Metrics()
        async with pool.use("m") as model:
            made = Scheduler(reset=pool.reset, lose=pool.lose, metrics=metrics, max_tokens=10_000, devices=pool.serving)
            try:
                found = await asyncio.wait_for(work(made, model, pool), 20)
            finally:
                ended = await asyncio.to_thread(made.stop, 20)
        assert ended
        assert made.waiting_tokens == 0
        assert await pool.close(within_s=5)
        return found

    return asyncio.run(run())


def test_both_devices_compute_at_once_from_one_queue() -> None:
    gate = threading.Event()
    cards = [Card(gate=gate), Card(gate=gate)]

    async def work(scheduler: Scheduler, model: Model, _pool: ModelPool) -> None:
        for card in cards:
            card.entered.clear()
            card.batches.clear()
        gate.clear()
        asks = [asyncio.create_task(scheduler.pool(model, [text(300)])) for _ in range(2)]
        entered = [await asyncio.to_thread(card.entered.wait, 10) for card in cards]
        assert entered == [True, True]
        assert model.computing_on == set(NAMES)
        gate.set()
        assert [rows.shape for rows in await asyncio.gather(*asks)] == [(1, 64)] * 2

    gate.set()
    for card in cards:
        card.token_budget = 300
    serve({name: [card] for name, card in zip(NAMES, cards, strict=True)}, work)
    assert [card.batches for card in cards] == [[[300]], [[300]]]


def test_a_failure_on_one_device_reloads_that_one_only() -> None:
    sick, sound, fresh = Card(), Card(), Card()

    async def work(scheduler: Scheduler, model: Model, pool: ModelPool) -> None:
        sick.fault = EngineError("out of memory computing")
        found = await asyncio.gather(*(scheduler.pool(model, [text(3)]) for _ in range(8)))
        np.testing.assert_allclose(np.concatenate(found), np.tile(ROWS[97], (8, 1)), rtol=1e-6)
        while not sick.entered.is_set():
            await scheduler.pool(model, [text(3)])
        assert pool.lost == []

    serve({"cpu:0": [sick, fresh], "cpu:1": [sound]}, work)
    assert sick.closed


def test_requests_of_a_lost_device_are_computed_by_the_other(caplog: pytest.LogCaptureFixture) -> None:
    sick, sound = Card(), Card()

    async def work(scheduler: Scheduler, model: Model, pool: ModelPool) -> None:
        sick.fault = GONE
        sick.entered.clear()
        while not pool.lost:
            found = await asyncio.gather(*(scheduler.pool(model, [text(3), text(40)]) for _ in range(8)))
            np.testing.assert_allclose(np.concatenate(found), np.tile(ROWS[97], (16, 1)), rtol=1e-5)
        assert (await scheduler.pool(model, [text(5)])).shape == (1, 64), "serves on"
        assert scheduler.is_alive
        assert (pool.lost, pool.serving, list(model.replicas)) == (["cpu:1"], ["cpu:0"], ["cpu:0"])
        assert model.size_bytes == 10, "of the one that is left"
        async with pool.use("other") as other:
            assert list(other.replicas) == ["cpu:0"]

    with caplog.at_level(logging.INFO, "nestling.server"):
        serve({"cpu:0": [sound, Card()], "cpu:1": [sick, GONE]}, work)
    [said] = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert said.getMessage() == "device lost until the server is restarted"
    facts = said.fields  # type: ignore[attr-defined]
    assert facts == {"device": "cpu:1", "error": f"EngineError: {GONE}", "serving": ["cpu:0"]}
    assert sick.closed


def test_a_long_text_on_a_lost_device_begins_again_on_the_other() -> None:
    sick, sound = Card(token_budget=50), Card(token_budget=50)

    async def work(scheduler: Scheduler, model: Model, pool: ModelPool) -> None:
        sick.fault = GONE
        while not pool.lost:
            found = await asyncio.gather(*(scheduler.pool(model, [text(200)]) for _ in range(4)))
            np.testing.assert_allclose(np.concatenate(found), np.tile(ROWS[97], (4, 1)), rtol=1e-5)

    serve({"cpu:0": [sick, GONE], "cpu:1": [sound]}, work)


def test_the_last_device_is_never_lost() -> None:
    """Its requests fail, and each new one tries to load it again."""
    first, second, again = Card(), Card(), Card()

    async def work(scheduler: Scheduler, model: Model, pool: ModelPool) -> None:
        first.fault = second.fault = GONE
        while not pool.lost:
            with pytest.raises(EngineError, match="device unplugged"):
                await scheduler.pool(model, [text(3)])
        for _ in range(20):
            try:
                rows = await scheduler.pool(model, [text(3)])
            except EngineError:
                continue
            assert rows.shape == (1, 64)
            break
        else:
            pytest.fail("it was not loaded again")
        assert (len(pool.lost), len(pool.serving)) == (1, 1)

    serve({"cpu:0": [first, GONE, GONE, again], "cpu:1": [second, GONE, GONE, again]}, work)


def test_a_damaged_file_is_not_a_lost_device() -> None:
    damaged = GGUFError("m.gguf: overwritten while it was in use")
    all_of = [Card(), Card()]

    async def work(scheduler: Scheduler, model: Model, pool: ModelPool) -> None:
        for card in all_of:
            card.fault = damaged
        for _ in range(3):
            with pytest.raises(EngineError):
                await scheduler.pool(model, [text(3)])
        assert pool.lost == []

    serve({name: [card, *[damaged] * 9] for name, card in zip(NAMES, all_of, strict=True)}, work)


def test_stopping_waits_for_what_a_device_may_hand_over() -> None:
    """The other device is idle, and must not end before."""
    sick, sound = Card(), Card()

    async def work(scheduler: Scheduler, model: Model, _pool: ModelPool) -> None:
        asks = list[asyncio.Task[Any]]()
        sick.fault = GONE
        sick.entered.clear()
        while not sick.entered.is_set():
            asks.append(asyncio.create_task(scheduler.pool(model, [text(3)])))
            await asyncio.sleep(0)
        await asyncio.to_thread(scheduler.stop, 20)
        assert [rows.shape for rows in await asyncio.gather(*asks)] == [(1, 64)] * len(asks)

    serve({"cpu:0": [sick, GONE], "cpu:1": [sound]}, work)


def test_abandoning_while_a_device_is_lost_fails_what_it_had() -> None:
    sick, sound, held = Card(), Card(), threading.Event()

    async def work(scheduler: Scheduler, model: Model, pool: ModelPool) -> None:
        lose = pool.lose

        def slow(device: str, error: Exception) -> bool:
            lost = lose(device, error)
            assert held.wait(10)
            return lost

        for one in scheduler._threads:
            object.__setattr__(one._recovery, "lose", slow)
        sick.fault = sound.fault = GONE
        ask = asyncio.create_task(scheduler.pool(model, [text(3)]))
        while not pool.lost:
            await asyncio.sleep(0.01)
        scheduler.abandon()
        held.set()
        with pytest.raises(EngineError, match="the server is stopping"):
            await ask

    serve({"cpu:0": [sick, GONE], "cpu:1": [sound, GONE]}, work)


def test_replicas_of_different_arithmetic_are_refused() -> None:
    """Each device tries out what is fastest there; answers must not depend on which one gives them."""
    pool = pool_of({"cpu:0": [Card()], "cpu:1": [other := Card(arithmetic="int8-rows")]})

    async def use() -> None:
        async with pool.use("m"):
            pass

    expected = "m: fake bf16 on cpu:0, fake int8-rows on cpu:1: their vectors would differ; --arithmetic names one"
    with pytest.raises(EngineError, match=expected):
        asyncio.run(use())
    assert other.closed


def test_a_server_does_not_start_on_some_of_its_devices() -> None:
    pool = pool_of({"cuda:0": [first := Card()], "cuda:1": [EngineError("device='cuda:1': expected one of cuda:0")]})

    async def use() -> None:
        async with pool.use("m"):
            pass

    with pytest.raises(EngineError, match="device='cuda:1': expected one of cuda:0"):
        asyncio.run(use())
    assert first.closed


def test_a_lost_device_over_http() -> None:
    cards, loaded = [Card(), Card()], list[str]()

    def load(reference: str) -> Embedder:
        loaded.append(reference)
        if len(loaded) > len(cards):
            raise GONE
        return fake_embedder(engine=cards[len(loaded) - 1])

    with running(load, device="cpu,cpu") as server, httpx.Client(base_url=server.url, timeout=20) as client:
        assert client.get("/health").json() == {"status": "ok"}
        engines = client.get("/v1/models").json()["engines"]
        assert [one["device"] for one in engines] == list(NAMES)
        assert server.service.models.loaded[0].size_bytes == 0
        cards[1].fault = GONE
        while not server.service.models.lost:
            assert client.post("/v1/embeddings", json={"input": ["a"] * 50}).status_code == 200
        health = client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "degraded", "lost": ["cpu:1"]})
        assert client.get("/ready").status_code == 200
        assert [one["device"] for one in client.get("/v1/models").json()["engines"]] == ["cpu:0"]
        lines = client.get("/metrics").text.splitlines()
        assert 'nestling_device_up{device="cpu:0"} 1.0' in lines
        assert 'nestling_device_up{device="cpu:1"} 0.0' in lines
        assert 'nestling_engine_resets_total{device="cpu:0"} 0.0' in lines
        assert 'nestling_engine_resets_total{device="cpu:1"} 1.0' in lines
        assert any(line.startswith('nestling_batch_tokens_count{device="cpu:0"}') for line in lines)


def test_devices_share_the_processors_and_have_names_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str | None, int | None]]()

    def load(_reference: str, *, device: str | None, threads: int | None, **_more: Any) -> Embedder:
        asked.append((device, threads))
        raise EngineError("enough")

    monkeypatch.setattr(Embedder, "load", load)
    monkeypatch.setattr("nestling.server.core.loading.usable_threads", lambda: 9)
    for device, threads in ((None, None), ("cpu", None), ("cpu,cpu", None), ("cpu,cpu", 3), ("cuda:1,cuda:0", None)):
        wanted = settings(device=device, threads=threads)
        for name, one in loads(wanted).items():
            with pytest.raises(EngineError):
                one(name)
    cards = [("cuda:1", None), ("cuda:0", None)]
    assert asked == [(None, None), ("cpu", None), ("cpu", 4), ("cpu", 4), ("cpu", 3), ("cpu", 3), *cards]
    assert named_devices(settings(device="cpu,cpu")) == {"cpu:0": "cpu", "cpu:1": "cpu"}
    assert named_devices(settings(device="cuda:1,cuda:0")) == {"cuda:1": "cuda:1", "cuda:0": "cuda:0"}
    assert named_devices(settings()) == {"default": None}


def test_an_image_takes_the_tower_of_the_device_that_computes_it() -> None:
    """The tower of the replica that read it may be on a device that was lost since."""
    made_by, computed_by = fake_embedder(engine=Card()), fake_embedder(engine=Card())
    computed_by.vision = mine = cast("Vision", object())
    item = ImageItem(text(3).ids, vision=cast("Vision", object()))
    model = Model("m", {"cpu:0": made_by, "cpu:1": computed_by})
    loop = asyncio.new_event_loop()
    job = Job(model, [item, text(5)], loop.create_future())
    loop.close()
    image, plain = Batch(model, Limits(9, 9, inf), [(job, 0), (job, 1)]).works("cpu:1")
    assert isinstance(image.item, ImageItem)
    assert image.item.vision is mine
    assert plain.item is job.items[1]
