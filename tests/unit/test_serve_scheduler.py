"""The queue's order, and the engine thread's manners."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.serving import ROWS, WIDTH, ByteTokenizer, FakeEngine, fake_embedder, fake_spec

from nestling.engine import batching
from nestling.engine.protocol import Item
from nestling.errors import EngineError
from nestling.models.embedder import Embedder
from nestling.server.core.fair_queue import Batch, Job, Limits, Queue
from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError
from nestling.server.core.replicas import ONE_DEVICE, Model
from nestling.server.core.scheduler import Scheduler
from nestling.spec import Task


def ids(length: int, fill: int = 97) -> Any:
    return Item(np.full(length, fill, np.int32))


def job(model: Model, *lengths: int) -> Job:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[Any] = loop.create_future()
    loop.close()
    return Job(model, [ids(n) for n in lengths], future)


def model(name: str = "m", engine: FakeEngine | None = None) -> Model:
    return Model(name, {ONE_DEVICE: fake_embedder(engine=engine)})


def take(queue: Queue, budget: int) -> Batch:
    batch = queue.take(lambda _model: Limits(budget, budget, batching.SPARE_PAIRS))
    assert batch is not None
    return batch


def test_a_short_query_overtakes_a_bulk_request() -> None:
    queue, one = Queue(), model()
    bulk, query = job(one, *[50] * 2000), job(one, 8)
    queue.add(bulk)
    take(queue, 500)
    queue.add(query)
    assert query in [part[0] for part in take(queue, 500).parts]


def test_a_bulk_request_is_not_starved_by_queries() -> None:
    queue, one = Queue(), model()
    bulk = job(one, *[50] * 10)
    queue.add(bulk)
    for _ in range(200):
        queue.add(job(one, 10))
        queue.add(job(one, 10))
        take(queue, 20)
    assert not bulk.waiting, "it did not get its share"


def test_a_batch_is_of_texts_of_like_length_from_several_requests() -> None:
    queue, one = Queue(), model()
    for _ in range(10):
        queue.add(job(one, 5, 50, 200))
    assert [len(part[0].items[part[1]]) for part in take(queue, 2000).parts] == [200] * 10
    assert [len(part[0].items[part[1]]) for part in take(queue, 300).parts] == [50] * 6


def test_requests_of_one_kind_share_a_batch() -> None:
    queue, one = Queue(), model()
    jobs = [job(one, 10) for _ in range(8)]
    for each in jobs:
        queue.add(each)
    assert [part[0] for part in take(queue, 80).parts] == jobs
    assert queue.take(lambda _model: Limits(80, 80, batching.SPARE_PAIRS)) is None


def test_an_engine_that_pads_nothing_gets_full_batches_of_any_lengths() -> None:
    queue, one = Queue(), model()
    queue.add(job(one, 700, 10, 10, 10))
    assert take(queue, 1000).tokens == 700
    queue = Queue()
    queue.add(job(one, 700, 10, 10, 10))
    batch = queue.take(lambda _model: Limits(1000, 1000, inf))
    assert batch is not None
    assert batch.tokens == 730


def test_a_batch_is_of_one_model_and_the_other_comes_next() -> None:
    queue, one, other = Queue(), model("one"), model("other")
    for name in (one, other, one):
        queue.add(job(name, 10))
    batches = [take(queue, 100) for _ in range(2)]
    assert [(batch.model, len(batch.parts)) for batch in batches] == [(one, 2), (other, 1)]


def test_a_text_beyond_the_budget_goes_alone() -> None:
    queue, one = Queue(), model()
    queue.add(job(one, 900))
    queue.add(job(one, 901))
    assert [take(queue, 100).tokens, take(queue, 100).tokens] == [900, 901]


def test_what_was_cancelled_is_not_taken_and_not_counted() -> None:
    queue, one = Queue(), model()
    gone, stays = job(one, *[10] * 5), job(one, 20)
    queue.add(gone)
    queue.add(stays)
    gone.cancelled = True
    queue.drop_cancelled()
    assert [part[0] for part in take(queue, 100).parts] == [stays]
    assert len(queue) == 0


@given(st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(1, 300))
def test_every_text_is_taken_once_within_the_budget(requests: list[list[int]], budget: int) -> None:
    queue, one = Queue(), model()
    jobs = [job(one, *lengths) for lengths in requests]
    for each in jobs:
        queue.add(each)
    taken: list[tuple[int, int]] = []
    while batch := queue.take(lambda _model: Limits(budget, budget, batching.SPARE_PAIRS)):
        assert batch.tokens <= budget or len(batch.parts) == 1
        taken += [(id(part), index) for part, index in batch.parts]
    assert sorted(taken) == sorted((id(each), n) for each in jobs for n in range(len(each.items)))
    assert len(queue) == 0


def scheduler(reset: Any = None, *, max_tokens: int = 10_000, largest: int = 512) -> Scheduler:
    return Scheduler(reset=reset or (lambda *_: None), metrics=Metrics(), max_tokens=max_tokens, largest_batch=largest)


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_rows_come_back_in_the_order_of_the_texts() -> None:
    one, texts = model(), [ids(n, n) for n in (3, 200, 1, 100, 7)]

    async def work() -> Any:
        running = scheduler(largest=150)
        rows = await running.pool(one, texts)
        running.stop()
        return rows

    assert np.allclose(run(work()), [ROWS[text.ids[0]] for text in texts], atol=1e-6)


def test_a_failure_of_one_request_is_not_another_ones() -> None:
    engine, resets = FakeEngine(poison=b"xx", gate=threading.Event()), list[Model]()
    one = model(engine=engine)

    async def work() -> list[Any]:
        running = scheduler(lambda model, _device: resets.append(model))
        wait = [asyncio.ensure_future(running.pool(one, [ids(4)])) for _ in range(3)]
        bad = asyncio.ensure_future(running.pool(one, [ids(4), ids(4, ord("x"))]))
        await asyncio.sleep(0)
        assert engine.gate
        engine.gate.set()
        found = await asyncio.gather(*wait, bad, return_exceptions=True)
        running.stop()
        return found

    *good, bad = run(work())
    assert all(np.allclose(rows, ROWS[97], atol=1e-6) for rows in good)
    assert isinstance(bad, EngineError)
    assert len(resets) >= 2, "once after the failure, once more so that the next request finds a sound engine"


class Broken(FakeEngine):
    def pool(self, items: Sequence[Any], *, adapters: Sequence[int] = ()) -> Any:
        raise RuntimeError("secret")


def test_an_engine_that_raises_is_an_engine_error_even_when_the_reset_fails() -> None:
    def reset(*_: object) -> None:
        raise OSError("gone")

    async def work() -> None:
        running = scheduler(reset)
        with pytest.raises(EngineError) as caught:
            await running.pool(model(engine=Broken()), [ids(4)])
        assert "secret" not in str(caught.value)
        assert (await running.pool(model("sound"), [ids(4)])).shape == (1, 64)
        running.stop()

    run(work())


def test_a_full_queue_is_refused_and_a_cancelled_request_makes_room() -> None:
    engine = FakeEngine(gate=threading.Event())
    one = model(engine=engine)

    async def work() -> None:
        running = scheduler(max_tokens=100)
        first = asyncio.ensure_future(running.pool(one, [ids(10)]))
        await asyncio.to_thread(engine.entered.wait)
        second = asyncio.ensure_future(running.pool(one, [ids(90)]))
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as caught:
            await running.pool(one, [ids(20)])
        assert caught.value.retry_after_s == 1
        second.cancel()
        await asyncio.sleep(0)  # the turn in which it learns of it
        assert engine.gate
        engine.gate.set()
        await first
        assert (await running.pool(one, [ids(100)])).shape == (1, 64)
        running.stop()
        assert [90] not in engine.batches

    run(work())


def test_stopping_finishes_what_waits() -> None:
    async def work() -> Any:
        running = scheduler()
        waiting = [asyncio.ensure_future(running.pool(model(), [ids(5)])) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.to_thread(running.stop)
        return await asyncio.gather(*waiting)

    assert len(run(work())) == 5


def test_pooled_texts_of_several_tasks_share_a_batch() -> None:
    queue, one = Queue(), model()
    for task in (Task.CODE, Task.RETRIEVAL, Task.CODE):
        queue.add(replace(job(one, 10), task=task))
    assert len(take(queue, 100).parts) == 3


def test_vectors_of_tokens_of_chunks_and_of_texts_share_a_batch() -> None:
    """What is made of the states is no reason for a batch of its own: late chunking was, being a function each time."""
    queue, one = Queue(), model()
    makes = [None, lambda states: states * 2, one.embedder.chunk_pool([np.array([0, 1]), np.array([2, 3])])]
    for make in makes:
        queue.add(replace(job(one, 4), make=make))
    batch = take(queue, 100)
    assert len(batch.parts) == 3
    text, tokens, chunks = one.embedder.compute.batch(batch.works(ONE_DEVICE))
    row = ROWS[97]
    assert (text.shape, tokens.shape, chunks.shape) == ((WIDTH,), (4, WIDTH), (2, WIDTH))
    for found, expected in ((text, row), (tokens, np.tile(2 * row, (4, 1))), (chunks, np.tile(row, (2, 1)))):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bulk_requests_take_turns() -> None:
    """By quanta: none waits until the other is done, however large."""
    queue, one = Queue(), model()
    large, small = job(one, *[100] * 100), job(one, *[90] * 30)
    queue.add(large)
    queue.add(small)
    taken = [take(queue, 100).parts[0][0] for _ in range(40)]
    assert 15 <= taken.count(large) <= 25
    assert large in taken[:12]
    assert small in taken[:12]


def test_each_text_of_a_mixed_batch_takes_its_own_adapter() -> None:
    shared = FakeAdapted()
    specs = [fake_spec(task) for task in Task]
    whole = Embedder(specs[0], ByteTokenizer(), shared, adapters=specs)  # type: ignore[arg-type]
    adapted = Model("m", {ONE_DEVICE: whole})

    async def ask() -> list[Any]:
        scheduler = Scheduler(reset=lambda *_: None, metrics=Metrics(), max_tokens=1000, largest_batch=1000)
        asks = [scheduler.pool(adapted, [ids(5)], task=task) for task in Task]
        answers = await asyncio.gather(*asks)
        await asyncio.to_thread(scheduler.stop)
        return answers

    found = [int(rows[0, 0]) for rows in asyncio.run(ask())]
    assert found == [1, 2, 3]


class FakeAdapted:
    """Answers with the number of the adapter that a text takes, counted from one."""

    name = "fake"
    token_budget = 1000
    spare_pairs: float = batching.SPARE_PAIRS
    reason = "a test's"

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Any:
        assert len(adapters) == len(items)
        return np.repeat(np.array(adapters, np.float32)[:, None] + 1, WIDTH, 1)

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass
