"""What `gpu_speed` measures with: the device, the shapes, files of noise, and the time that is left."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests import tiny_gguf

from nestling.engine import batching
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.protocol import Item, TokenIds, plain
from nestling.engine.torch.devices import Placement
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.products import Int8Products, PlainProducts
from nestling.engine.vision import Grid
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.formats.tower_shape import TowerShape
from nestling.vectors import Floats

NOISE = 1 << 24
"""Random numbers of a file, the same over and over."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is run. `rows`: of one product; `lengths`: of texts of one length; `mixed`: of texts together."""

    shape: Hyperparameters
    tower: TowerShape
    rows: int
    lengths: Sequence[int]
    mixed: Sequence[int]
    grids: Sequence[Grid]
    file_types: Sequence[str]
    noise: int = NOISE


def full(layers: int = 36) -> Sizes:
    """Those of jina-embeddings-v4, of so many layers."""
    shape = Hyperparameters(
        layers=layers, hidden=2048, heads=16, kv_heads=2, feed_forward=11008, rms_eps=1e-6, rope_theta=1e6,
        rope_sections=(16, 24, 24), context=32768, vocabulary=151936,
    )  # fmt: skip
    mixed = np.random.default_rng(0).integers(16, 513, 256).tolist()
    tower = TowerShape(32, 1280, 16, 3420, 2048, 8, 1e-6)
    lengths = (16, 64, 256, 512, 2048, 8192, 16384)
    return Sizes(shape, tower, 8192, lengths, mixed, [(48, 64)] * 4, ("F16", "Q4_K_M"))


def quick() -> Sizes:
    """So small that a processor runs every line of the script in a second or two."""
    shape = Hyperparameters(
        layers=1, hidden=256, heads=4, kv_heads=2, feed_forward=512, rms_eps=1e-6, rope_theta=1e6,
        rope_sections=(8, 12, 12), context=4096, vocabulary=512,
    )  # fmt: skip
    tower = TowerShape(2, 48, 2, 100, 256, 2, 1e-6)
    return Sizes(shape, tower, 32, (16, 40), (5, 30, 17), [(4, 4), (6, 10)], ("F16",), 1 << 18)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the script. `cards`: the devices to run on at once; `llama`: see `gpu_peers`; `until`: its end."""

    on: Placement
    cards: Sequence[Placement]
    sizes: Sizes
    folder: Path
    llama: Path | None = None
    until: float = field(default_factory=lambda: time.monotonic() + 300)

    @property
    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() >= self.until

    @property
    def noise(self) -> Path:
        """The file of the text model, in BF16."""
        path = self.folder / "noise.gguf"
        return path if path.exists() else write_noise(path, self.sizes)

    def products(self) -> dict[str, Int8Products]:
        """Our kernels, by their tiles; on a processor the formulas in their place, to try the script."""
        if self.on.is_cpu:
            return {"plain": PlainProducts()}
        from nestling.engine.torch.kernels import TILES, KernelProducts  # on a card

        return {str(tuple(tiles)): KernelProducts(tiles) for tiles in TILES}  # on a card

    def texts(self, lengths: Sequence[int]) -> list[Item]:
        """Random tokens, of these lengths."""
        return plain([ids(length, place) for place, length in enumerate(lengths)])


def ids(length: int, seed: int) -> TokenIds:
    """Random tokens that the small models of the tests have too."""
    return np.random.default_rng(seed).integers(0, len(tiny_gguf.tokens()), length).astype(np.int32)


def in_batches(engine: TorchEngine, items: list[Item]) -> None:
    """Pool items as a server would."""
    for places in batching.plan([len(item) for item in items], engine.token_budget, spare_pairs=engine.spare_pairs):
        engine.pool([items[index] for index in places])


def write_noise(path: Path, sizes: Sizes) -> Path:
    """A BF16 file with random weights. llama.cpp reads it too: it has no vocabulary, but its size."""
    shape = sizes.shape
    numbers = {
        "context_length": shape.context, "embedding_length": shape.hidden, "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "pooling_type": 1, "vocab_size": shape.vocabulary,
    }  # fmt: skip
    fields = {name: Field.uint32(value) for name, value in numbers.items()}
    fields["attention.layer_norm_rms_epsilon"] = Field.float32(shape.rms_eps)
    fields["rope.freq_base"] = Field.float32(shape.rope_theta)
    fields["rope.dimension_sections"] = Field.int32s([*shape.rope_sections, 0])
    general = {"architecture": Field.string("qwen2vl"), "file_type": Field.uint32(FILE_TYPES["BF16"])}
    every = {f"general.{key}": one for key, one in general.items()}
    every |= {"tokenizer.ggml.model": Field.string("no_vocab")} | {f"qwen2vl.{key}": one for key, one in fields.items()}
    noise = np.random.default_rng(0).standard_normal(sizes.noise, np.float32) / np.float32(shape.hidden**0.5)
    write_gguf(path, every, [_plan(name, size, noise) for name, size in shape.tensors().items()])
    return path


def _plan(name: str, size: tuple[int, ...], noise: Floats) -> TensorPlan:
    kind = QuantType.BF16 if len(size) > 1 else QuantType.F32
    return TensorPlan(name, size, kind, partial(_pieces, size, noise))


def _pieces(size: tuple[int, ...], noise: Floats) -> Iterator[NDArray[Any]]:
    if len(size) == 1:
        yield np.ones(size, np.float32)
        return
    rows = len(noise) // size[1]
    block = (noise[: rows * size[1]].view(np.uint32) >> 16).astype(np.uint16).reshape(rows, size[1]).view(np.uint8)
    for start in range(0, size[0], rows):
        yield block[: min(rows, size[0] - start)]
