"""Long texts in pieces: what runs between two of them, and what ends them. Order of work is asserted, not time.

Doors by which one text could hold the others: a query of the same model, of another model, another long text, the
text's own request; its client leaving, the server stopping, the model being closed, the engine failing; a batch that
runs while requests are cancelled.
"""

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf
from tests.contract.serving import ROWS, WIDTH, FakeEngine, fake_embedder

from nestling.engine import batching
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.openvino import engine as openvino_engine
from nestling.engine.openvino import packing
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.paged import Paged
from nestling.engine.openvino.rectangles import Rectangles
from nestling.engine.protocol import Item
from nestling.engine.torch.devices import place
from nestling.engine.torch.engine import TorchEngine
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.server.core.fair_queue import QUANTUM, WINDOW, Job, Limits, Queue
from nestling.server.core.metrics import Metrics
from nestling.server.core.refusals import BusyError
from nestling.server.core.replicas import ONE_DEVICE, Model
from nestling.server.core.scheduler import Scheduler
from nestling.vectors import Floats

PIECE, BUDGET = 50, 100
SHAPES = {
    name: Hyperparameters(*sizes, 1e-6, 1e6, (), 32_768, 151_936)
    for name, sizes in {
        "starter": (4, 256, 4, 2, 768),
        "full width, 4 layers": (4, 2048, 16, 2, 11_008),
        "full size": (36, 2048, 16, 2, 11_008),
    }.items()
}
Hook = Callable[[], None]


@dataclass
class InPieces(FakeEngine):
    """Logs its batches and pieces; `after` is called when a piece has been computed, in the engine's thread."""

    token_budget: int = BUDGET
    log: list[str] = field(default_factory=list)
    after: dict[str, Hook] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        self.log.append("+".join(str(len(item)) for item in items))
        return super().pool(items, adapters=adapters)

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        assert not adapters
        for piece in range(len(item) // PIECE):
            name = f"{len(item)}.{piece}"
            self.log.append(name)
            if name in self.fails:
                self.fails.remove(name)
                raise RuntimeError("a piece failed")
            if hook := self.after.pop(name, None):
                hook()
            yield PIECE
        return ROWS[item.ids]


def text(length: int) -> Item:
    return Item(np.full(length, 97, np.int32))


def model(engine: InPieces, name: str = "m") -> Model:
    return Model(name, {ONE_DEVICE: fake_embedder(engine=engine)})


def no_reset(_model: Model, _device: str) -> None:
    """The engine that failed goes on."""


def serve(
    work: Callable[[Scheduler], Any], *, reset: Callable[[Model, str], None] = no_reset, max_tokens: int = 10_000
) -> Any:
    """Run `work` beside a scheduler, which is stopped in the end."""

    async def run() -> Any:
        made = Scheduler(reset=reset, metrics=Metrics(), max_tokens=max_tokens)
        try:
            return await asyncio.wait_for(work(made), 20)
        finally:
            await asyncio.to_thread(made.stop)

    return asyncio.run(run())


def meanwhile(act: Callable[[], Any]) -> Hook:
    """In the engine's thread: have the event loop do something, and wait until it has."""
    loop = asyncio.get_running_loop()

    async def do() -> None:
        act()
        await asyncio.sleep(0)  # a task that was made has its first turn, in which it is admitted

    return lambda: asyncio.run_coroutine_threadsafe(do(), loop).result(10)


def test_a_query_that_arrives_between_two_pieces_runs_before_the_next() -> None:
    engine, other = InPieces(), InPieces()

    async def work(scheduler: Scheduler) -> None:
        one, two, tasks = model(engine), model(other, "other"), list[asyncio.Task[Any]]()

        def ask(asked: Model, *lengths: int) -> Hook:
            request = [text(length) for length in lengths]
            return meanwhile(lambda: tasks.append(asyncio.create_task(scheduler.pool(asked, request))))

        engine.after = {"400.1": ask(one, 5), "400.3": ask(one, 40, 30), "400.4": ask(two, 7)}
        found = await scheduler.pool(one, [text(400)])
        np.testing.assert_allclose(found, ROWS[97:98], rtol=1e-6)
        await asyncio.gather(*tasks)

    serve(work)
    assert engine.log[:4] == ["400.0", "400.1", "5", "400.2"]
    assert engine.log[5:7] == ["40+30", "400.4"]
    assert engine.log[7:] == ["400.5", "400.6", "400.7"]
    assert other.log == ["7"]


def test_a_second_long_text_waits_for_the_first_and_its_requests_short_texts_do_not() -> None:
    engine = InPieces()

    async def work(scheduler: Scheduler) -> None:
        one = model(engine)
        await asyncio.gather(scheduler.pool(one, [text(200), text(10)]), scheduler.pool(one, [text(150), text(20)]))

    serve(work)
    pieces = [name for name in engine.log if "." in name]
    assert pieces == ["150.0", "150.1", "150.2", "200.0", "200.1", "200.2", "200.3"]
    assert engine.log.index("20") < engine.log.index("150.2")
    assert engine.log.index("10") < engine.log.index("200.3")


def test_a_text_whose_client_leaves_has_no_further_piece() -> None:
    engine = InPieces()

    async def work(scheduler: Scheduler) -> None:
        one = model(engine)
        asked = asyncio.create_task(scheduler.pool(one, [text(400)]))
        engine.after = {"400.2": meanwhile(lambda: asked.cancel())}
        with pytest.raises(asyncio.CancelledError):
            await asked
        await scheduler.pool(one, [text(5)])
        assert scheduler.waiting_tokens == 0

    serve(work)
    assert engine.log == ["400.0", "400.1", "400.2", "5"]


def test_abandoning_ends_the_thread_after_the_piece_and_tells_everyone() -> None:
    engine = InPieces()

    async def work(scheduler: Scheduler) -> None:
        one, tasks = model(engine), list[asyncio.Task[Any]]()

        def leave() -> None:
            tasks.append(asyncio.create_task(scheduler.pool(one, [text(300)])))
            scheduler.abandon()

        engine.after = {"400.1": meanwhile(leave)}
        tasks.append(asyncio.create_task(scheduler.pool(one, [text(400)])))
        await asyncio.to_thread(scheduler._threads[0].join, 10)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in found] == ["the server is stopping"] * 2
        assert all(isinstance(error, EngineError) for error in found)
        assert not scheduler.is_alive
        assert scheduler.waiting_tokens == 0

    serve(work)
    assert engine.log == ["400.0", "400.1"]


def test_stopping_finishes_a_long_text() -> None:
    engine = InPieces()

    async def work(scheduler: Scheduler) -> None:
        asked = asyncio.create_task(scheduler.pool(model(engine), [text(150)]))
        await asyncio.sleep(0)
        await asyncio.to_thread(scheduler.stop)
        assert (await asked).shape == (1, WIDTH)

    serve(work)


def test_a_long_text_whose_engine_fails_begins_again_once() -> None:
    engine, resets = InPieces(fails={"200.1"}), list[Model]()

    async def work(scheduler: Scheduler) -> None:
        one = model(engine)
        assert (await scheduler.pool(one, [text(200)])).shape == (1, WIDTH)
        assert engine.log == ["200.0", "200.1", "200.0", "200.1", "200.2", "200.3"]
        engine.fails = {"150.0", "150.1"}
        with pytest.raises(EngineError, match="RuntimeError in the engine"):
            await scheduler.pool(one, [text(150)])
        assert (await scheduler.pool(one, [text(5)])).shape == (1, WIDTH)

    serve(work, reset=lambda model, _device: resets.append(model))
    assert len(resets) == 3


def test_a_reset_for_a_batch_begins_the_long_text_again_in_the_new_engine() -> None:
    engine = InPieces(poison=b"xx")

    async def work(scheduler: Scheduler) -> None:
        one, tasks = model(engine), list[asyncio.Task[Any]]()
        bad = Item(np.frombuffer(b"xx", np.uint8).astype(np.int32))
        engine.after = {"200.1": meanwhile(lambda: tasks.append(asyncio.create_task(scheduler.pool(one, [bad]))))}
        assert (await scheduler.pool(one, [text(200)])).shape == (1, WIDTH)
        [found] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found, EngineError)

    serve(work)
    assert engine.log[-4:] == ["200.0", "200.1", "200.2", "200.3"]
    assert engine.log[:3] == ["200.0", "200.1", "2"]


def test_requests_that_are_cancelled_while_a_batch_runs_leave_the_count_at_once() -> None:
    """Clients that time out and try again did fill the queue with their dead requests."""
    engine = InPieces(gate=threading.Event())

    async def work(scheduler: Scheduler) -> None:
        one = model(engine)
        running = asyncio.create_task(scheduler.pool(one, [text(10)]))
        await asyncio.to_thread(engine.entered.wait)
        dead = [asyncio.create_task(scheduler.pool(one, [text(30)])) for _ in range(3)]
        await asyncio.sleep(0)
        assert scheduler.waiting_tokens == 90
        with pytest.raises(BusyError):
            await scheduler.pool(one, [text(30)])
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)
        assert scheduler.waiting_tokens == 0
        again = asyncio.create_task(scheduler.pool(one, [text(30)]))
        assert engine.gate
        engine.gate.set()
        await asyncio.gather(running, again)

    serve(work, max_tokens=100)
    assert engine.log == ["10", "30"]


def test_choosing_a_batch_never_holds_up_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at some thousand texts, and did so under the lock that every request takes to be admitted."""
    choosing, gate, take = threading.Event(), threading.Event(), Queue.take

    def slow(queue: Queue, *arguments: Any, **named: Any) -> Any:
        choosing.set()
        assert gate.wait(20)
        return take(queue, *arguments, **named)

    monkeypatch.setattr(Queue, "take", slow)

    async def work(scheduler: Scheduler) -> None:
        one = model(InPieces())
        first = asyncio.create_task(scheduler.pool(one, [text(10)]))
        await asyncio.to_thread(choosing.wait)
        second = asyncio.create_task(scheduler.pool(one, [text(30)]))
        await asyncio.sleep(0)
        assert scheduler.waiting_tokens == 40, "it was let in"
        second.cancel()
        await asyncio.sleep(0)
        assert scheduler.waiting_tokens == 10, "it was let go"
        gate.set()
        await first

    serve(work)


def test_a_batch_is_chosen_once_and_from_a_window() -> None:
    """Many thousand waiting texts are not gone through again for every batch."""
    looked: list[int] = []

    class Counted(Item):
        def __len__(self) -> int:
            looked.append(1)
            return super().__len__()

    queue, one, limits = Queue(), model(InPieces()), Limits(1024, 1024, batching.SPARE_PAIRS)
    loop = asyncio.new_event_loop()
    items = [Counted(np.full(64, 97, np.int32)) for _ in range(20_000)]
    queue.add(Job(one, items, loop.create_future()))
    loop.close()
    looked.clear()
    assert queue.take(lambda _model: limits) is not None
    assert len(looked) < 20 * WINDOW * limits.budget / 64


def test_a_steady_stream_of_queries_and_a_long_text_share_the_engine() -> None:
    """By tokens of work, to a quantum: neither takes more than its half over any longer time."""
    queue, one = Queue(), model(InPieces())
    long, limits = job(one, 32_768), Limits(1024, 1024, batching.SPARE_PAIRS)
    queue.add(long)
    assert queue.take(lambda _model: limits) is not None
    spent = {"long": 0, "queries": 0}
    for _ in range(2000):
        queue.add(job(one, 20))
        batch = queue.take(lambda _model: limits, running=long)
        while batch is None:
            queue.charge(long, 256)
            spent["long"] += 256
            batch = queue.take(lambda _model: limits, running=long)
        spent["queries"] += batch.tokens
        assert spent["queries"] - spent["long"] <= 2 * QUANTUM + 256
        assert spent["long"] - spent["queries"] <= 2 * QUANTUM + 256
    assert spent["queries"] == 40_000


def job(one: Model, *lengths: int) -> Job:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[Any] = loop.create_future()
    loop.close()
    return Job(one, [text(length) for length in lengths], future)


# The engine itself.


@dataclass
class Logged:
    """A real engine, whose pieces and batches are logged; `after` as in `InPieces`."""

    inner: Any
    token_budget: int = 64
    spare_pairs: float = batching.SPARE_PAIRS
    log: list[str] = field(default_factory=list)
    after: dict[str, Hook] = field(default_factory=dict)
    name: str = "logged"
    reason: str = ""

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        self.log.append("+".join(str(len(item)) for item in items))
        found: Floats = self.inner.pool(items, adapters=adapters)
        return found

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        inner, piece = self.inner.steps(item, adapters=adapters), 0
        while True:
            try:
                work = next(inner)
            except StopIteration as done:
                found: Floats = done.value
                return found
            name = f"{len(item)}.{piece}"
            self.log.append(name)
            if hook := self.after.pop(name, None):
                hook()
            yield work
            piece += 1


def real_engine(name: str, path: Path) -> Any:
    file = GGUFFile.open(path)
    engine: Any = TorchEngine(file, on=place("cpu", threads=1)) if name == "torch" else OpenVINOEngine(file, threads=1)
    engine.token_budget = 64
    return Logged(engine)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_real_engine_runs_a_query_between_two_pieces_and_drops_a_text_whose_client_left(
    tiny_models: dict[str, Path], name: str
) -> None:
    engine = real_engine(name, tiny_models["F32"])

    async def work(scheduler: Scheduler) -> None:
        one, tasks = Model("m", {ONE_DEVICE: fake_embedder(engine=engine)}), list[asyncio.Task[Any]]()
        ask = meanwhile(lambda: tasks.append(asyncio.create_task(scheduler.pool(one, [random_item(7)]))))
        engine.after = {"300.0": ask}
        await scheduler.pool(one, [random_item(300)])
        await asyncio.gather(*tasks)
        asked = asyncio.create_task(scheduler.pool(one, [random_item(301)]))
        engine.after = {"301.0": meanwhile(lambda: asked.cancel())}
        with pytest.raises(asyncio.CancelledError):
            await asked
        await scheduler.pool(one, [random_item(5)])

    serve(work)
    assert engine.log[:3] == ["300.0", "7", "300.1"]
    assert engine.log[-2:] == ["301.0", "5"]


def random_item(length: int) -> Item:
    return Item(np.random.default_rng(length).integers(0, len(tiny_gguf.tokens()), length).astype(np.int32))


@pytest.mark.parametrize("past_bytes", [openvino_engine.PAST_BYTES, 1])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_vectors_are_equal_with_batches_in_between_bit_for_bit(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, past_bytes: int
) -> None:
    """Layers in one group, and each in its own; short batches and another long text between the pieces."""
    monkeypatch.setattr(OpenVINOEngine, "token_budget", 64)
    monkeypatch.setattr(openvino_engine, "PAST_BYTES", past_bytes)
    engine = OpenVINOEngine(GGUFFile.open(tiny_models[kind]), threads=1)
    long, short, second = random_item(300), [random_item(20), random_item(7)], random_item(130)
    [expected], beside, after = engine.token_states([long]), engine.pool(short), engine.pool([second])
    steps, pieces = engine.steps(long), 0
    while True:
        try:
            assert next(steps) > 0
        except StopIteration as done:
            found: Floats = done.value
            break
        pieces += 1
        np.testing.assert_array_equal(engine.pool(short), beside)
        if pieces == 2:
            np.testing.assert_array_equal(engine.pool([second]), after)
    assert pieces >= 5
    np.testing.assert_array_equal(found, expected)


def test_the_work_of_the_pieces_is_that_of_the_text_and_of_what_it_sees(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVINOEngine, "token_budget", 64)
    engine = OpenVINOEngine(GGUFFile.open(tiny_models["F32"]), threads=1)
    work = list(engine.steps(random_item(256)))
    shape = Hyperparameters.of(GGUFFile.open(tiny_models["F32"]))
    cut = packing.pieces(256, heads=shape.heads, limits=engine._piece_limits(range(shape.layers)))
    multiplied = [(stop - start, 2 * shape.hidden * start) for start, stop in cut]
    expected = [size * (1 + engine._attention.cost * seen / shape.layer_weights) for size, seen in multiplied]
    np.testing.assert_allclose(work, expected, rtol=1e-6)


@pytest.mark.parametrize("form", [Paged, Rectangles])
@pytest.mark.parametrize("length", [2048, 8192, 32_768])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_piece_is_at_most_six_batches_of_work_whatever_the_models_width(
    shape: Hyperparameters, length: int, form: type[Paged] | type[Rectangles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention to a long past is most of a narrow model's work: by memory alone a piece was twelve batches of it."""
    engine = object.__new__(OpenVINOEngine)
    monkeypatch.setattr(engine, "_shape", shape, raising=False)
    monkeypatch.setattr(engine, "_attention", form(shape), raising=False)
    token_bytes = 2 * shape.kv_heads * shape.head_dim * 4
    groups = packing.layer_groups(
        shape.layers,
        layer_bytes=openvino_engine.PAST_TOKENS * token_bytes,
        most_bytes=openvino_engine.PAST_BYTES,
    )
    for layers in groups:
        limits = engine._piece_limits(layers)
        share = len(layers) / shape.layers
        cut = list(packing.pieces(length, heads=shape.heads, limits=limits))
        work = [limits.work_of(stop - start, start) * share for start, stop in cut]
        assert max(work) <= openvino_engine.PIECE_BATCHES * engine.token_budget


def test_closing_ends_a_text_at_its_next_piece(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINOEngine, "token_budget", 64)
    engine = OpenVINOEngine(GGUFFile.open(tiny_models["F32"]), threads=1)
    steps = engine.steps(random_item(200))
    next(steps)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        next(steps)
