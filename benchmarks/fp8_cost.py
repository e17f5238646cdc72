"""What fp8 products (e4m3) would cost in the vector beside int8 by rows and int8 in groups, on a processor.

    python -m benchmarks.fp8_cost

Both sides of every product are rounded, products and sums are float32: what a card's tensor cores compute. Models: the
starter's F16 and Q4_K_M files on documents of the shipped benchmark sets, and the small random model with outliers of
`gpu_correctness` on random tokens. Compared with float32 in the
same engine. Writes benchmarks/results/fp8-cost.json.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tests import tiny_gguf
from torch import Tensor

from benchmarks import int8_cost, measuring
from benchmarks.gpu_correctness import outliers
from nestling._util.cpu import usable_threads
from nestling.engine import batching
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.protocol import Item, plain
from nestling.engine.torch import choice, products
from nestling.engine.torch import engine as torch_engine
from nestling.engine.torch.arithmetic import Arithmetic, FloatArithmetic, Rows
from nestling.engine.torch.devices import Placement, place
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.products import Quantized
from nestling.formats.gguf import GGUFFile
from nestling.models import local
from nestling.vectors import Floats, paired_cosine

E4M3_MOST = 448
Round = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rounded(FloatArithmetic):
    """float32, but for both sides of every product, which are rounded."""

    by: Round

    def pack(self, w: Tensor) -> Rows:
        """Rounded."""
        return self.by(w)

    def times(self, x: Rows, w: Rows, bias: Tensor | None) -> Tensor:
        """Of rounded activations."""
        assert isinstance(x, Tensor)
        return torch.nn.functional.linear(self.by(x), w, bias)


def e4m3(x: Tensor, group: int | None = None) -> Tensor:
    """Rounded to e4m3 with a float32 scale for each row, or for each group of a row, finer than any card's scales."""
    parts = x.reshape(*x.shape[:-1], -1, group or x.shape[-1])
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-30) / E4M3_MOST
    return ((parts / scale).to(torch.float8_e4m3fn).float() * scale).reshape(x.shape)


def int8(x: Tensor, group: int | None = None) -> Tensor:
    """The same in int8."""
    parts = x.reshape(*x.shape[:-1], -1, group or x.shape[-1])
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-30) / products.LEVELS
    return (torch.round(parts / scale) * scale).reshape(x.shape)


FORMS: dict[str, Round] = {
    "int8, groups of 128": partial(int8, group=128),
    "fp8 rows": e4m3,
    "fp8, groups of 32": partial(e4m3, group=32),
}
"""Without the rotation."""
ROTATED: dict[str, Round] = {"int8 rows, rotated": int8, "fp8 rows, rotated": e4m3}


def main() -> None:
    on = place("cpu", threads=usable_threads())
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"model": name, "form": form, "mean": float(cost.mean()), "worst": float(cost.max())}
            for name, file, items in models(Path(folder))
            for form, cost in costs(file, items, on)
        ]
    for row in rows:
        print(row, flush=True)
    measuring.write("fp8-cost", {"rows": rows})


def models(folder: Path) -> Iterator[tuple[str, GGUFFile, list[Item]]]:
    for file_type in ("F16", "Q4_K_M"):
        file = GGUFFile.open(local.resolve(f"starter-retrieval:{file_type}"))
        yield f"starter {file_type}", file, plain(int8_cost.texts(file)[::5])
    vocabulary, rng = len(tiny_gguf.tokens()), np.random.default_rng(0)
    random = [rng.integers(0, vocabulary, length).astype(np.int32) for length in (3, 30, 60, 200, 400)]
    yield "outliers", outliers(folder / "outliers.gguf"), plain(random)


def costs(file: GGUFFile, items: list[Item], on: Placement) -> Iterator[tuple[str, Floats]]:
    """1 - cosine to float32, by form."""
    expected = _pooled(file, items, choice.floats(ArithmeticName.FLOAT32), on)
    for form, by in FORMS.items():
        unrotated = Rounded(ArithmeticName.FLOAT32, torch.float32, by)
        yield form, _cost(_pooled(file, items, unrotated, on), expected)
    for form, by in ROTATED.items():
        rotated = choice.int8(Hyperparameters.of(file), on)
        with patch.object(products, "quantized", partial(_quantized, by=by)):
            yield form, _cost(_pooled(file, items, rotated, on), expected)


def _cost(found: Floats, expected: Floats) -> Floats:
    return np.asarray(1 - paired_cosine(found, expected), np.float32)


def _quantized(x: Tensor, *, by: Round) -> Quantized:
    """Rounded numbers in place of integers, with scales of one."""
    return Quantized(by(x.float()), torch.ones(len(x)))


def _pooled(file: GGUFFile, items: list[Item], arithmetic: Arithmetic, on: Placement) -> Floats:
    with patch.object(torch_engine, "choose", lambda *_: choice.Choice(arithmetic, "")):
        engine = TorchEngine(file, on=on)
    found = np.empty((len(items), Hyperparameters.of(file).hidden), np.float32)
    for places in batching.plan([len(item) for item in items], engine.token_budget, spare_pairs=engine.spare_pairs):
        found[places] = engine.pool([items[place] for place in places])
    return found


if __name__ == "__main__":
    main()
