"""Pooling on the device, so that only one vector per item is transferred back."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from nestling.engine.protocol import Item
from nestling.spec import Pooling


def equal_runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of adjacent items of equal length: (first row, length, number of items)."""
    found, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        found.append((start, length, count))
        start += length * count
    return found


def pooled(states: Tensor, items: Sequence[Item], pooling: Pooling) -> Tensor:
    """Each item's vector: (N, D) rows of B items, concatenated -> (B, D). Items of equal length go together."""
    lengths = [len(item) for item in items]
    if any(item.pooled for item in items):
        chosen = [rows[one.pooled or slice(None)] for rows, one in zip(states.split(lengths), items, strict=True)]
        states, lengths = torch.cat(chosen), list(map(len, chosen))
    parts = []
    for start, length, count in equal_runs(lengths):
        rows = states[start : start + length * count].view(count, length, -1)
        parts.append(rows.mean(1) if pooling is Pooling.MEAN else rows[:, -1])
    return torch.cat(parts)
