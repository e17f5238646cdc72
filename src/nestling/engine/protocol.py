"""The engine's contract: items in, final-norm hidden states out, pooled or per token.

An item is the token ids of a text, or of an image's prompt with the image's rows in place of its embeddings. Its answer
does not depend on the other items of the batch, their order or their lengths. An engine does not decide which items
share a batch: `batching.plan` does, once.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nestling.errors import EngineError
from nestling.spec import Pooling
from nestling.vectors import Floats, last_pool, mean_pool

TokenIds = NDArray[np.int32]
Positions = NDArray[np.int64]
POOLS: dict[Pooling, Callable[[Floats, NDArray[np.int64]], Floats]] = {
    Pooling.MEAN: mean_pool,
    Pooling.LAST: last_pool,
}
"""Pooling functions: (N, D) states of B texts, (B,) lengths -> (B, D)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows that replace some of an item's token embeddings, such as an image's.

    `places`: a (T,) mask or a slice that selects N of the item's T tokens; `values`: (N, D) float32, in token order.
    """

    places: NDArray[np.bool_] | slice
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One input of an engine: `Item(ids)` for a text.

    `ids`: (T,) int32, at least one. `positions`: None for 0 to T - 1, or (3, T) int64 M-RoPE positions (time, height,
    width). `rows`: None, or what replaces some tokens' embedding rows. `key`: bytes that tell items with equal ids
    apart, for caches; empty for texts. `pooled`: the tokens whose states become the vector, all by default. EngineError
    for parts that do not fit each other.
    """

    ids: TokenIds
    positions: Positions | None = None
    rows: Rows | None = None
    key: bytes = b""
    pooled: slice | None = None

    def __post_init__(self) -> None:
        if self.positions is not None and self.positions.shape != (3, len(self.ids)):
            raise EngineError(f"positions {self.positions.shape}: expected (3, {len(self.ids)}), one column per token")
        if self.rows is not None and (chosen := len(self.ids[self.rows.places])) != len(self.rows.values):
            raise EngineError(f"{len(self.rows.values)} rows for {chosen} tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def work(self) -> int:
        """Compute cost, in tokens of text."""
        return len(self)

    @property
    def identity(self) -> bytes:
        """Cache key: items with equal identities get equal vectors from one model."""
        return len(self.ids).to_bytes(4, "little") + self.ids.tobytes() + self.key


def plain(texts: Sequence[TokenIds]) -> list[Item]:
    """Token ids of B texts -> B items."""
    return [Item(ids) for ids in texts]


def pool_states(pooling: Pooling, states: Floats, items: Sequence[Item]) -> Floats:
    """Pool each item's token states: (N, D) rows of B items, concatenated -> (B, D)."""
    if any(item.pooled for item in items):
        parts = np.split(states, np.cumsum([len(item) for item in items])[:-1])
        chosen = [part[item.pooled or slice(None)] for part, item in zip(parts, items, strict=True)]
        return POOLS[pooling](np.concatenate(chosen), np.array([len(one) for one in chosen], np.int64))
    return POOLS[pooling](states, np.array([len(item) for item in items], np.int64))


class Engine(Protocol):
    """One loaded model. Calls from several threads are served one after another.

    `token_budget`: most tokens of a batch. `spare_pairs`: most pairs of a query and a key in a batch that may be
    padding (`batching.plan`); inf for an engine that pads nothing. `adapters`: for a base with LoRA adapters, each
    item's adapter, as an index into the list that the engine was loaded with; empty without adapters. `reason`: why
    this engine was chosen.
    """

    name: str
    token_budget: int
    spare_pairs: float
    reason: str

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """Pooled hidden states of a batch: B items -> (B, D) float32, not normalised.

        A batch has at most `token_budget` tokens, or is a single longer item. EngineError for an item that this
        engine cannot run.
        """
        ...

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Every token's hidden state: a batch as in `pool`: B items -> B new arrays of (T, D) float32."""
        ...

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An engine with chunked prefill: it can pause within an item longer than a batch and run others meanwhile."""

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        """Every token's hidden state of one item, computed in prefill chunks; returns (T, D) float32.

        Yields after each chunk its cost, in tokens of a short text. Between two chunks the engine may run others,
        or be closed, which is an EngineError at the next chunk. The generator holds all state: dropping it frees the
        memory. `adapters` holds the item's adapter, if the engine has adapters.
        """
        ...


@runtime_checkable
class Profiled(Protocol):
    """An engine that measures its stages."""

    def profile(self) -> dict[str, float]:
        """Seconds by stage since loading. EngineError unless it was loaded with `profile`."""
        ...


@runtime_checkable
class Placed(Protocol):
    """An engine that may run on other devices than the CPU."""

    device: str


def device_of(engine: Engine) -> str:
    """The device that an engine runs on."""
    return engine.device if isinstance(engine, Placed) else "cpu"
