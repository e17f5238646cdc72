"""Stand-ins for a model, and a real server on a real port around them.

The stand-in tokenizer's ids are the bytes of the text; the stand-in engine's answer is the mean of a fixed random row a
byte, so that it depends on the text alone, as a real one's does.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.engine import batching
from nestling.engine.protocol import Item
from nestling.errors import TextError, UsageError
from nestling.models.embedder import Embedder
from nestling.models.local import ModelReference
from nestling.server.app import create_app
from nestling.server.core.model_pool import Load
from nestling.server.core.service import Service
from nestling.server.listening import bound
from nestling.server.process import Server
from nestling.server.setting_values import TokenInput
from nestling.server.settings import ServeSettings
from nestling.spec import ModelSpec, Task, prefixes_for
from nestling.vectors import Floats

WIDTH, MAX_TOKENS = 64, 512
Ids = NDArray[np.int32]
ROWS = np.random.default_rng(7).standard_normal((256, WIDTH)).astype(np.float32)


class ByteTokenizer:
    """Ids are UTF-8 bytes."""

    size = 256

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        for index, text in enumerate(texts):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise TextError("a lone surrogate has no UTF-8 form", index=index)
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def close(self, ids: Ids) -> Ids:
        return ids

    def cut(self, ids: Ids, limit: int) -> Ids:
        return ids[:limit]

    def encode_with_offsets(self, text: str) -> tuple[Ids, NDArray[np.int64]]:
        places = [(place, place + 1) for place, char in enumerate(text) for _ in char.encode()]
        return self.encode([text])[0], np.array(places, np.int64)

    special: frozenset[int] = frozenset()

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        return [bytes([number]) for number in ids]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        if any(not 0 <= number < self.size for number in ids):
            raise UsageError("token ids go from 0 to 255", param="tokens")
        return bytes(ids).decode("utf-8", "replace")


@dataclass
class FakeEngine:
    """Counts its batches, waits for `gate` and `delay_s`, and answers with NaN while a batch holds `poison`."""

    name: str = "fake"
    token_budget: int = 1 << 20
    spare_pairs: float = batching.SPARE_PAIRS
    reason: str = "a test's"
    delay_s: float = 0.0
    poison: bytes | None = None
    gate: threading.Event | None = None
    batches: list[list[int]] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        assert not adapters
        self.entered.set()
        if self.gate:
            assert self.gate.wait(20)
        time.sleep(self.delay_s)
        self.batches.append([len(item) for item in items])
        rows = np.stack([ROWS[item.ids].mean(0) for item in items])
        if self.poison and any(self.poison in bytes(item.ids.tolist()) for item in items):
            rows[:] = np.nan
        return rows

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        assert not adapters
        self.batches.append([len(item) for item in items])
        return [ROWS[item.ids] for item in items]

    def close(self) -> None:
        self.closed = True


def fake_spec(task: Task = Task.RETRIEVAL) -> ModelSpec:
    return ModelSpec("fake", task, (16, 32, WIDTH), MAX_TOKENS, prefixes_for(task), source="test")


def fake_embedder(task: Task = Task.RETRIEVAL, engine: FakeEngine | None = None) -> Embedder:
    return Embedder(fake_spec(task), ByteTokenizer(), engine or FakeEngine())  # type: ignore[arg-type]


def loader(make_engine: Callable[[], FakeEngine] = FakeEngine, loads: list[str] | None = None) -> Load:
    """A loader of stand-ins; the references that it was asked for go to `loads`."""

    def load(reference: str) -> Embedder:
        if loads is not None:
            loads.append(reference)
        return fake_embedder(ModelReference.parse(reference).task or Task.RETRIEVAL, make_engine())

    return load


def settings(**changes: Any) -> ServeSettings:
    mode = TokenInput(changes.pop("token_input", TokenInput.REJECT))
    return ServeSettings(**{"model": ("fake",), "port": 0, "token_input": mode, **changes})


@dataclass(frozen=True)
class Running:
    """A server in a thread."""

    port: int
    service: Service
    loop: asyncio.AbstractEventLoop
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(load: Load | None = None, **changes: Any) -> Iterator[Running]:
    """A server with stand-ins (or `load`) on a free port, ready when the block begins, stopped when it ends."""
    app = create_app(settings(**changes), load or loader())
    listener = bound("127.0.0.1", 0)
    server = Server(app, listener, drain_s=2, announce=lambda _service, _listener: ready.set())
    ready, loops = threading.Event(), list[asyncio.AbstractEventLoop]()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20), "the server did not become ready"
        yield Running(listener.getsockname()[1], app.state.service, loops[0], server)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def serve_alone(delay_s: float) -> None:
    """Serve a stand-in that takes `delay_s` a batch once it has been tested, until a signal; prints the port first."""
    engine = FakeEngine()
    listener = bound("127.0.0.1", 0)

    def announce(_service: Service, _listener: Any) -> None:
        engine.delay_s = delay_s
        print(listener.getsockname()[1], flush=True)  # noqa: T201 - the parent reads it

    app = create_app(settings(), loader(lambda: engine))
    Server(app, listener, drain_s=30, announce=announce).run(sockets=[listener])
