"""Cases for our Triton kernels, and a process of their own to interpret them in.

    TRITON_INTERPRET=1 python -m tests.interpreted_kernels OUT

Whether triton interprets is settled when it is imported. `OUT` gets each case's results, by its name.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from nestling.engine.torch import kernels
from nestling.engine.torch.products import Int8Products, quantized

Made = tuple[torch.Tensor, ...]
Case = Callable[[Int8Products, torch.dtype], Made]
"""What to compute, and the type of a product's result."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _broken_rows(width: int) -> torch.Tensor:
    """Zeros, then a row with NaN, then one with infinity."""
    x = torch.stack([torch.zeros(width), torch.ones(width), torch.ones(width)])
    x[1, 3], x[2, 3] = float("nan"), float("inf")
    return x


def _both(rows: int, width: int) -> torch.Tensor:
    """Gate beside up; one place is a thousand times the others."""
    both = random(rows, 2 * width)
    both[0, 5] = both[0, width + 5] = 30
    return both.bfloat16()


def _product(rows: int, depth: int, channels: int, *, bias: bool) -> Case:
    x, w = quantized(random(rows, depth)), quantized(random(channels, depth, seed=1))
    added = random(channels, seed=2) if bias else None
    return lambda by, dtype: (by.times(x, w, added, dtype),)


SIZES = ((1, 256), (37, 300))
ROWS: dict[str, Case] = {
    **{f"norm {size}": lambda by, _, size=size: by.normed(random(*size), 1e-6) for size in SIZES},  # type: ignore[misc]
    **{f"rows {size}": lambda by, _, size=size: by.rows(random(*size).bfloat16()) for size in SIZES},  # type: ignore[misc]
    "gated, one block": lambda by, _: by.gated(_both(1, 256)),
    "gated, a rest of rows": lambda by, _: by.gated(_both(21, 768)),
}
PRODUCTS: dict[str, Case] = {
    f"{rows} x {depth} x {channels}, {bias=}": _product(rows, depth, channels, bias=bias)
    for rows, depth, channels in ((1, 64, 32), (37, 300, 70), (70, 128, 33))
    for bias in (False, True)
}
BROKEN: dict[str, Case] = {
    "rows": lambda by, _: by.rows(_broken_rows(64)),
    "norm": lambda by, _: by.normed(_broken_rows(64), 1e-6),
    "gated": lambda by, _: by.gated(_broken_rows(512)),
}
CASES = ROWS | PRODUCTS | BROKEN


def main(out: str) -> None:
    by: Any = kernels.KernelProducts(kernels.Tiles(32, 32, 64, 4, 2))
    torch.save({name: tuple(case(by, torch.bfloat16)) for name, case in CASES.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1])
