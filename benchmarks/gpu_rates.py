"""The speed of our own engine and tower: a part of `gpu_speed`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_correctness import graphs_loss, random_patches, record
from benchmarks.gpu_plan import Plan, in_batches
from benchmarks.images import random_tower
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.torch.choice import fastest
from nestling.engine.torch.devices import Placement
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.products import quantized
from nestling.engine.torch.vision import TorchTower
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile

QUERIES = (8, 16, 60)
"""Tokens of a query that is alone."""


def peaks(plan: Plan) -> list[dict[str, Any]]:
    """TFLOP/s of each product of a layer: bfloat16 by torch, int8 by each way of cutting it."""
    shape, device = plan.sizes.shape, plan.on.device
    width = shape.hidden + 2 * shape.kv_heads * shape.head_dim
    found = []
    for depth, channels in (
        (shape.hidden, width), (shape.hidden, 2 * shape.feed_forward), (shape.feed_forward, shape.hidden)
    ):  # fmt: skip
        x, w = torch.randn(plan.sizes.rows, depth, device=device), torch.randn(channels, depth, device=device)
        narrow_x, narrow_w = x.bfloat16(), w.bfloat16()
        work = 2e-12 * len(x) * depth * channels
        row: dict[str, Any] = {"product": [depth, channels]}
        row["bf16"] = work / fastest(partial(torch.matmul, narrow_x, narrow_w.T), plan.on)
        rows, matrix = quantized(x), quantized(w)
        for name, one in plan.products().items():
            try:
                row[f"int8 {name}"] = work / fastest(partial(one.times, rows, matrix, None, torch.bfloat16), plan.on)
            except RuntimeError:  # on a card
                # It wants more shared memory than this one has, as the correctness part said.
                continue  # on a card
        found.append(row)
    return found


def measured(plan: Plan, arithmetic: ArithmeticName) -> dict[str, Any]:
    """Tokens a second by length and mixed, queries with graphs and without, where the time went, memory."""
    engine = TorchEngine(GGUFFile.open(plan.noise), on=plan.on, arithmetic=arithmetic)
    found: dict[str, Any] = {"why": engine.reason, "weights_bytes": engine.memory()[0]}
    found["tokens/s mixed"] = mixed_rate(engine, plan)
    found["queries"] = queries(engine, plan)
    for length in plan.sizes.lengths:
        if plan.is_over:
            break
        found[f"tokens/s at {length}"] = _rate(engine, plan, [length] * max(1, engine.token_budget // length))
    found["peak_bytes"] = engine.memory()[1]
    engine.graphs, engine._profiled = None, True  # a second engine would take seconds to load
    in_batches(engine, plan.texts(plan.sizes.mixed))
    found["profile_s"] = engine.profile()
    engine.close()
    return found


def mixed_rate(engine: TorchEngine, plan: Plan) -> float:
    """Tokens a second over texts of all lengths."""
    items = plan.texts(plan.sizes.mixed)
    return sum(plan.sizes.mixed) / fastest(partial(in_batches, engine, items), plan.on)


def queries(engine: TorchEngine, plan: Plan) -> list[dict[str, Any]]:
    """Seconds of one query alone, without graphs and with all of them, whatever their trial found."""
    kept, engine.graphs = engine.graphs, None
    every = [plan.texts([length]) for length in QUERIES]
    packed = [fastest(partial(engine.pool, items), plan.on) for items in every]
    lost = graphs_loss(engine, plan, every[0])
    rows: list[dict[str, Any]] = [
        {"tokens": length, "packed_s": seconds, "graphs_s": fastest(partial(engine.pool, items), plan.on), "loss": lost}
        for length, seconds, items in zip(QUERIES, packed, every, strict=True)
    ]
    record(engine, plan)
    rows.append({"trial": engine.graphs.reason if engine.graphs else None})
    engine.graphs = kept
    return rows


def _rate(engine: TorchEngine, plan: Plan, lengths: Sequence[int]) -> float | str:
    items = plan.texts(lengths)
    try:
        return sum(lengths) / fastest(partial(engine.pool, items), plan.on)
    except EngineError as error:  # on a card
        return str(error)  # on a card


def images(plan: Plan) -> dict[str, Any]:
    """Images of the largest default size a second, together and alone, and the tower's memory."""
    path = plan.folder / "mmproj-noise.gguf"
    random_tower(path, plan.sizes.tower)
    before = plan.on.memory()[0]
    tower, grids = TorchTower(VisionFile.open(path), on=plan.on), list(plan.sizes.grids)
    given = [random_patches(grid, plan.sizes.tower) for grid in grids]
    weights = plan.on.memory()[0] - before
    together_s = fastest(partial(tower.rows, given, grids), plan.on)
    alone_s = fastest(partial(tower.rows, given[:1], grids[:1]), plan.on)
    return {
        "patches": [rows * columns for rows, columns in grids], "images/s": len(grids) / together_s,
        "alone_s": alone_s, "weights_bytes": weights, "peak_bytes": plan.on.memory()[1],
    }  # fmt: skip


def together(plan: Plan) -> dict[str, Any]:
    """Tokens a second of an engine on every card, each with the same texts, beside one card's."""
    if len(plan.cards) == 1:
        return {"skipped": "one card"}  # on a card
    engines = [_loaded(plan, on) for on in plan.cards]
    items = plan.texts(plan.sizes.mixed)
    alone = mixed_rate(engines[0], plan)
    with ThreadPoolExecutor(len(engines)) as pool:
        seconds = fastest(lambda: list(pool.map(lambda engine: in_batches(engine, items), engines)), plan.on)
    for engine in engines:
        engine.close()
    return {
        "cards": len(engines), "one, tokens/s": alone, "all, tokens/s": len(engines) * sum(plan.sizes.mixed) / seconds
    }  # fmt: skip


def _loaded(plan: Plan, on: Placement) -> TorchEngine:
    return TorchEngine(GGUFFile.open(plan.noise), on=on, arithmetic=ArithmeticName.BF16)
