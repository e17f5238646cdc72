"""The GPU engine: packed batches, pooled on the device, one transfer back. A CPU runs it in float32, the exact mode.

Memory: a batch's widest array is freed before the next product; of a long item one layer's keys and values are held.
When the device first runs out of memory, the token budget is halved; from then on that is an EngineError.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nestling.engine import rotary
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.protocol import Item, plain
from nestling.engine.torch import graphs
from nestling.engine.torch.attention import Runs
from nestling.engine.torch.choice import choose, forced
from nestling.engine.torch.devices import Placement
from nestling.engine.torch.failures import working
from nestling.engine.torch.graphs import SIZES, Graphs, tried
from nestling.engine.torch.loading import Loader
from nestling.engine.torch.pooling import pooled
from nestling.engine.torch.text import Batch, Squares, TextModel
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

CARD_BUDGET = 8192
"""Tokens of a batch on a GPU: enough to fill its tensor cores with any matrix of this family."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A batch, and `last`, which turns its states (N, D) into the rows that are wanted."""

    items: Sequence[Item]
    adapters: Sequence[int]
    last: Callable[[Tensor], Tensor]
    squares: Squares | None = None


class TorchEngine:
    """A GGUF file on a device. `arithmetic`: that of its products; `reason`: where it runs and why.

    `graphs`: those that small batches take, None for none.
    """

    name = "torch"
    spare_pairs = inf

    def __init__(
        self,
        file: GGUFFile,
        *,
        on: Placement,
        pooling: Pooling = Pooling.MEAN,
        adapters: Sequence[Adapter] = (),
        profile: bool = False,
        arithmetic: ArithmeticName = ArithmeticName.AUTO,
    ) -> None:
        """`arithmetic`: `auto` leaves it to `choice`."""
        self._path, self._on, self._pooling, self._lock = file.path, on, pooling, threading.Lock()
        self._shape, self._profiled = Hyperparameters.of(file), profile
        self._rotary = rotary.Rotary(self._shape)
        self._seconds: dict[str, float] = defaultdict(float)
        self._halved = False
        self.token_budget = TOKEN_BUDGET if on.is_cpu else CARD_BUDGET
        with torch.inference_mode(), working(file.path, on, "loading"):
            chosen = choose(file, on) if arithmetic is ArithmeticName.AUTO else forced(arithmetic, self._shape, on)
            loader = Loader(file, on, chosen.arithmetic, adapters)
            self._model: TextModel | None = loader.text_model(self._stage)
            self._gates = loader.gates()
            self.graphs = self._recorded(self._model)
        self.arithmetic, self.device = chosen.arithmetic.name, str(on.device)
        self.reason = f"on {on.device} in {self.arithmetic}: {chosen.reason}"
        if self.graphs:
            self.reason += f"; {self.graphs.reason}"

    def _recorded(self, model: TextModel) -> Graphs | None:
        """Graphs for small batches, where there can be some; not with a profile, which waits between kernels."""
        if self._profiled or self._on.device.type != "cuda":
            return None
        return tried(model, self._on, self.example(), capture=graphs.cuda)

    def example(self) -> Batch:
        """A batch of one item of as many tokens as the largest graph takes."""
        return self._batch(_Asked(plain([np.zeros(SIZES[-1], np.int32)]), [0], lambda states: states))

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """Pooled hidden states of a batch: B items -> (B, D)."""
        return self._answer(_Asked(items, adapters, partial(pooled, items=items, pooling=self._pooling)))

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Hidden states of a batch: B items -> B arrays of (T, D)."""
        states = self._answer(_Asked(items, adapters, lambda states: states))
        return np.split(states, np.cumsum([len(item) for item in items])[:-1])

    def squares(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> dict[str, Floats]:
        """Each matrix's sum of squares of its input over a batch's tokens: name -> (W,). Not in int8."""
        found = Squares()
        self._answer(_Asked(items, adapters, lambda states: states[:1], found))
        return {name: total.cpu().numpy() for name, total in found.items()}

    def profile(self) -> dict[str, float]:
        """Seconds by stage since loading; EngineError if it was not loaded with `profile`."""
        if not self._profiled:
            raise EngineError("no profile: load with profile=True")
        return dict(self._seconds)

    def memory(self) -> tuple[int, int]:
        """Bytes on the device that are in use now, and the most so far; zeros on a CPU."""
        return self._on.memory()

    def close(self) -> None:
        """Free the weights."""
        with self._lock:
            self._model = self._gates = self.graphs = None
            self._on.free_unused()

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        """One item, a layer at a time: T tokens -> (T, D). The generator holds its rows; see `Resumable`."""
        asked, shape = _Asked([item], adapters, lambda states: states), self._shape
        work = len(item) * (1 + len(item) * shape.hidden / shape.layer_weights)  # attention counts too
        with self._working() as model:
            x, batch = self._entering(model, asked.items), self._batch(asked)
        for layer in model.layers:
            with self._working() as model:
                model.run(x, layer, batch, self.token_budget)
                self._on.wait()
            yield work / len(model.layers)
        with self._working() as model:
            found: Floats = model.finished(model.normed(x)).cpu().numpy()
        return found

    def _answer(self, asked: _Asked) -> Floats:
        """Run a batch; when out of memory, try again with half the token budget."""
        with self._working() as model:
            try:
                return self._run(model, asked)
            except torch.OutOfMemoryError:
                if self._halved:
                    raise
            self._halved, self.token_budget = True, self.token_budget // 2
            self._on.free_unused()
            return self._run(model, asked)

    def _run(self, model: TextModel, asked: _Asked) -> Floats:
        with self._stage("embedding rows"):
            x = self._entering(model, asked.items)
        batch = self._batch(asked)
        states = self.graphs.states(x, batch) if self.graphs else None
        if states is None:
            states = self._through(model, x, batch)
        with self._stage("pool"):
            found: Floats = model.finished(asked.last(model.normed(states))).cpu().numpy()
        return found

    def _through(self, model: TextModel, x: Tensor, batch: Batch) -> Tensor:
        for layer in model.layers:
            model.run(x, layer, batch, self.token_budget)
        return x

    def _entering(self, model: TextModel, items: Sequence[Item]) -> Tensor:
        """Embedding rows, or the rows that replace them: (N, D) float32."""
        ids = np.concatenate([item.ids for item in items]).astype(np.int64)
        x = model.embedded(self._up(ids))
        start = 0
        for item in items:
            if item.rows is not None:
                self._check_width(item.rows.values)
                places = start + np.arange(len(item))[item.rows.places]
                x[self._up(places)] = model.into_basis(self._up(item.rows.values))
            start += len(item)
        return x

    def _check_width(self, values: Floats) -> None:
        if values.shape[1:] != (self._shape.hidden,):
            raise EngineError(f"rows of shape {values.shape[1:]}: expected the model's {self._shape.hidden} dimensions")

    def _batch(self, asked: _Asked) -> Batch:
        lengths = [len(item) for item in asked.items]
        turns = self._up(self._rotary.cos_sin(rotary.positions(asked.items)))[:, None]
        cos, sin = turns.chunk(2, -1)
        gates = None
        if self._gates is not None:
            gates = self._gates[self._up(np.repeat(np.array(asked.adapters, np.int64), lengths))]
        return Batch(Runs.of(lengths, self._on.device), cos, sin, gates, asked.squares)

    def _up(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(self._on.device)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a stage, if profiled; waits for the device, so that they are the stage's own."""
        if not self._profiled:
            yield
            return
        self._on.wait()
        began = time.perf_counter()
        yield
        self._on.wait()
        self._seconds[name] += time.perf_counter() - began

    @contextmanager
    def _working(self) -> Iterator[TextModel]:
        """The model, for one thread at a time; EngineError if it is closed or the device fails."""
        with self._lock, torch.inference_mode(), working(self._path, self._on, "computing"):
            if self._model is None:
                raise EngineError("the engine is closed")
            yield self._model


class Observer:
    """Run a float file on a device to collect the sums of squares of an importance matrix (imatrix)."""

    def __init__(self, file: GGUFFile, *, on: Placement, adapters: Sequence[Adapter] = ()) -> None:
        self._engine, self._adapters = TorchEngine(file, on=on, adapters=adapters), len(adapters)

    def collect(self, sequences: Sequence[Sequence[int]]) -> dict[str, tuple[NDArray[np.float32], int]]:
        """Run the texts: matrix name -> (sum over tokens of the input's squares (W,), number of tokens).

        With adapters, text i takes adapter i modulo their number.
        """
        items = plain([np.asarray(one, np.int32) for one in sequences])
        adapters = [place % self._adapters for place in range(len(items))] if self._adapters else []
        tokens, sums = sum(map(len, items)), self._engine.squares(items, adapters=adapters)
        return {name: (row, tokens) for name, row in sums.items()}
