"""What goes into an engine and what every engine promises.

An engine gets items (tokens, with an image's rows among them if there is one) and answers with their final-norm hidden
states, pooled (their mean over all of the item's tokens, or the last one) or token by token. The answer does not depend
on the item's neighbours in the batch, their order or their lengths. Which items share a batch is not an engine's
business: `batching.plan` says it, once.
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
"""How the rows of several texts become a vector each: (N, D) states, (B,) lengths -> (B, D)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows that replace embedding rows of an item, such as an image's.

    `places`: a (T,) mask or a slice of the item's T tokens that chooses N of them; `values`: (N, D) float32, in order.
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
            raise EngineError(f"positions {self.positions.shape}: (3, {len(self.ids)}) are needed, a column a token")
        if self.rows is not None and (chosen := len(self.ids[self.rows.places])) != len(self.rows.values):
            raise EngineError(f"{len(self.rows.values)} rows for {chosen} tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def work(self) -> int:
        """What it takes, in tokens of text."""
        return len(self)

    @property
    def identity(self) -> bytes:
        """Equal for items with equal vectors in one model, as far as `key` tells them apart."""
        return len(self.ids).to_bytes(4, "little") + self.ids.tobytes() + self.key


def plain(texts: Sequence[TokenIds]) -> list[Item]:
    """Token ids of B texts -> B items."""
    return [Item(ids) for ids in texts]


def pool_states(pooling: Pooling, states: Floats, items: Sequence[Item]) -> Floats:
    """Each item's vector from its tokens' states: (N, D) rows of B items one after another -> (B, D)."""
    if any(item.pooled for item in items):
        parts = np.split(states, np.cumsum([len(item) for item in items])[:-1])
        chosen = [part[item.pooled or slice(None)] for part, item in zip(parts, items, strict=True)]
        return POOLS[pooling](np.concatenate(chosen), np.array([len(one) for one in chosen], np.int64))
    return POOLS[pooling](states, np.array([len(item) for item in items], np.int64))


class Engine(Protocol):
    """One loaded model. Calls from several threads are served one after another.

    `token_budget`: most tokens of a batch. `adapters`, for a base with LoRA adapters: which one each item takes, by its
    place in the list that the engine was loaded with; empty for an engine without. `reason`: why this engine was taken.
    """

    name: str
    token_budget: int
    reason: str

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """Pooled hidden states of a batch: B items -> (B, D) float32, length not normalised.

        A batch has at most `token_budget` tokens, or is one item that alone has more. EngineError for an item that this
        engine cannot run.
        """
        ...

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Every token's hidden state: a batch as in `pool`, B items -> B arrays of (T, D) float32, the caller's own."""
        ...

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An engine that can pause in the middle of an item that is longer than a batch, and run others meanwhile."""

    def steps(self, item: Item, *, adapters: Sequence[int] = ()) -> Generator[float, None, Floats]:
        """Every token's hidden state of one item, piece by piece: (T, D) is returned.

        Yields after each piece the work that it was, in tokens of a short text. Between two pieces the engine may be
        called for other batches, or be closed, which is an EngineError at the next piece. The generator holds all
        state: dropping it frees the memory. `adapters` is that of the item, if the engine has some.
        """
        ...


@runtime_checkable
class Profiled(Protocol):
    """An engine that knows where its time goes."""

    def profile(self) -> dict[str, float]:
        """Seconds by stage since loading; needs `profile` at loading."""
        ...
