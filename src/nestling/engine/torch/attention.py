"""Attention over packed rows: the tokens of several items one after another, without padding.

torch's own variable-length attention on CUDA in bfloat16; elsewhere scaled_dot_product_attention, for all items of
equal length at once, or over all rows with a mask. An item's rows never depend on another item. Keys that query heads
share are not repeated.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from nestling.engine.torch.pooling import equal_runs


@dataclass(frozen=True, slots=True)
class Runs:
    """Where items lie among N packed rows: `lengths` of B items, `bounds` (B + 1,) int32 on the device."""

    lengths: tuple[int, ...]
    bounds: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Self:
        """Items of these lengths, one after another."""
        bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        bounds[1:] = torch.cumsum(torch.tensor(lengths, dtype=torch.int32), 0)
        return cls(tuple(lengths), bounds.to(device))


def attend(q: Tensor, k: Tensor, v: Tensor, runs: Runs | Tensor, *, causal: bool) -> Tensor:
    """Each row sees its own item's rows (none later if `causal`): (N, H, d) and two of (N, K, d) -> (N, H, d).

    H query heads share K heads of keys and values, H / K each. A tensor in place of runs is a mask (N, N), which says
    all.
    """
    if not isinstance(runs, Runs):
        return _rectangle(q, k, v, 1, mask=runs)
    fused = varlen()
    if fused is not None and q.is_cuda and q.dtype is torch.bfloat16:
        longest = max(runs.lengths)
        window = (-1, 0) if causal else (-1, -1)
        return fused(q, k, v, runs.bounds, runs.bounds, longest, longest, window_size=window)
    mixed = torch.empty_like(q)
    for start, length, count in equal_runs(runs.lengths):
        rows = slice(start, start + length * count)
        mixed[rows] = _rectangle(q[rows], k[rows], v[rows], count, causal=causal)
    return mixed


def _rectangle(
    q: Tensor, k: Tensor, v: Tensor, count: int, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """`count` items of equal length. Each head of keys is an entry of the batch; its heads are those that share it."""
    (rows, heads, width), shared = q.shape, k.shape[1]
    group, length = heads // shared, rows // count
    queries = q.view(count, length, shared, group, width).permute(0, 2, 3, 1, 4).flatten(0, 1)
    keys, values = (
        part.reshape(count, length, shared, 1, width).permute(0, 2, 3, 1, 4).flatten(0, 1).expand(-1, group, -1, -1)
        for part in (k, v)
    )
    mixed = functional.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal)
    return mixed.view(count, shared, group, length, width).permute(0, 3, 1, 2, 4).reshape(rows, heads, width)


@cache
def varlen() -> Callable[..., Any] | None:
    """Torch's variable-length attention; None where there is none with the signature that is called here.

    Splitting of keys is turned off where that is possible (`num_splits`): it depends on the batch's longest item.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return adapted(varlen_attn)


def adapted(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function with the options that it supports bound; None where it lacks a required one."""
    known = inspect.signature(function).parameters
    if not {"window_size", "enable_gqa"} <= known.keys():
        return None
    options: dict[str, Any] = {"enable_gqa": True} | ({"num_splits": 1} if "num_splits" in known else {})
    return lambda *tensors, window_size: function(*tensors, window_size=window_size, **options)
