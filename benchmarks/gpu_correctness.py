"""The correctness part of `gpu_speed`: what was compared, the worst 1 - cosine (or another loss), what is allowed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests import tiny_gguf

from benchmarks.gpu_plan import Plan, ids
from benchmarks.images import random_tower
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.protocol import Item, plain
from nestling.engine.torch import graphs
from nestling.engine.torch.choice import choose
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.products import LEVELS, PlainProducts, quantized
from nestling.engine.torch.vision import TorchTower
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import TowerShape
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
from nestling.vectors import Floats, paired_cosine

BOUNDS = {ArithmeticName.BF16: 2e-5, ArithmeticName.INT8_ROWS: 1.4e-4}
"""Twice what a CPU loses in the same arithmetic on the starter, 1 - cosine at worst."""
TEXTS = (
    "Query: a", "Query: A beautiful sunset over the beach", "Passage: 海滩上美丽的日落",
    "Passage: " + "The lock is taken before the file is read. " * 12,
)  # fmt: skip
TOWER = TowerShape(4, 160, 2, 256, 256, 2, 1e-6)
"""Heads of 80, as the published tower has them."""
Line = dict[str, Any]


def correctness(plan: Plan) -> Iterator[Line]:
    """Every comparison, the cheapest first."""
    yield from _kernels(plan)
    yield from _starters(plan)
    yield from _outliers(plan)
    yield from _tower(plan)


def line(what: str, found: float, allowed: float) -> Line:
    """A comparison; NaN is never allowed."""
    return {"what": what, "loss": found, "allowed": allowed, "passed": found <= allowed}


def loss(found: Floats, expected: Floats) -> float:
    """The worst 1 - cosine."""
    return float((1 - paired_cosine(found, expected)).max())


def _kernels(plan: Plan) -> Iterator[Line]:
    """Each kernel and its formula at the model's own sizes: rounded rows differ by a step at most."""
    shape, formulas, device = plan.sizes.shape, PlainProducts(), plan.on.device
    x, products = torch.randn(1000, shape.hidden, device=device), plan.products()
    both = torch.randn(1000, 2 * shape.feed_forward, device=device).bfloat16()
    ours = next(iter(products.values()))
    for name, found, expected in (
        ("norm", ours.normed(x, 1e-6), formulas.normed(x, 1e-6)),
        ("gated", ours.gated(both), formulas.gated(both)),
    ):
        steps = (found[0].int() - expected[0].int()).abs().float()
        yield line(f"kernel {name}: mean step of {LEVELS}", float(steps.mean()), 0.01)
    rows, w = quantized(x), quantized(torch.randn(2 * shape.feed_forward, shape.hidden, device=device))
    exact = formulas.times(rows, w, None, torch.float32)
    for name, one in products.items():
        try:
            product = one.times(rows, w, None, torch.bfloat16).float()
        except RuntimeError as error:  # on a card
            # It wants more shared memory than this one has.
            print(f"{name}: {error}", flush=True)  # on a card
            continue  # on a card
        yield line(f"kernel product {name}", float((product - exact).norm() / exact.norm()), 0.005)


def _starters(plan: Plan) -> Iterator[Line]:
    for file_type in plan.sizes.file_types:
        file = GGUFFile.open(local.resolve(f"starter-retrieval:{file_type}"))
        items = plain(Tokenizer.from_gguf(file).encode(TEXTS))
        expected = ReferenceEngine(file).pool(items)
        for arithmetic, allowed in BOUNDS.items():
            engine = TorchEngine(file, on=plan.on, arithmetic=arithmetic)
            yield line(f"starter {file_type} {arithmetic}", loss(engine.pool(items), expected), allowed)
            engine.close()
        print(f"chosen for {file_type}: {choose(file, plan.on).reason}", flush=True)


def _outliers(plan: Plan) -> Iterator[Line]:
    file = outliers(plan.folder / "outliers.gguf")
    items = plain([ids(length, tiny_gguf.LAYERS) for length in (3, 60, 700)])
    expected = ReferenceEngine(file).pool(items)
    for arithmetic, allowed in BOUNDS.items():
        engine = TorchEngine(file, on=plan.on, arithmetic=arithmetic)
        yield line(f"outliers {arithmetic}", loss(engine.pool(items), expected), 10 * allowed)
        alone = np.concatenate([engine.pool([item]) for item in items])
        yield line(f"alone and together {arithmetic}", loss(engine.pool(items), alone), allowed)
        yield line(f"graphs {arithmetic}", graphs_loss(engine, plan, items[:2]), allowed)
        engine.close()


def graphs_loss(engine: TorchEngine, plan: Plan, items: Sequence[Item]) -> float:
    """A small batch with graphs and without; all graphs that can be recorded, the slower ones too, are left on."""
    engine.graphs = None
    packed = engine.pool(items)
    record(engine, plan, always=True)
    return loss(engine.pool(items), packed)


def record(engine: TorchEngine, plan: Plan, *, always: bool = False) -> None:
    """Turn graphs on: those that pass their trial, or `always`. A processor calls what it would record."""
    capture = (lambda work: work) if plan.on.is_cpu else graphs.cuda
    times = iter((1.0, 2.0) * len(graphs.SIZES))
    clock = (lambda _work: next(times)) if always else None
    graphs._chosen.clear()  # every size again
    assert engine._model
    with torch.inference_mode():
        engine.graphs = graphs.tried(engine._model, plan.on, engine.example(), capture=capture, clock=clock)


def _tower(plan: Plan) -> Iterator[Line]:
    """Mean rows of random patches, in the arithmetic of this device."""
    path = plan.folder / "mmproj-small.gguf"
    random_tower(path, TOWER)
    vision, grids = VisionFile.open(path), [(4, 4), (2, 30), (18, 10), (10, 18)]
    given = [random_patches(grid, TOWER) for grid in grids]
    means = [
        np.stack([rows.mean(0) for rows in tower.rows(given, grids)])
        for tower in (TorchTower(vision, on=plan.on), ReferenceTower(vision))
    ]
    yield line("vision tower", loss(*means), 2e-4)


def random_patches(grid: tuple[int, int], shape: TowerShape) -> Floats:
    """Noise of the size of an image's patches."""
    return np.random.default_rng(0).standard_normal((grid[0] * grid[1], shape.patch_values), np.float32)


def outliers(path: Path) -> GGUFFile:
    """A small random model with four channels thirty times the others, as real decoders have them."""
    arrays, changes = tiny_gguf.weights(), dict[str, Any]()
    for name in [name for name in arrays if "_norm" in name and name.startswith("blk.")]:
        changed = arrays[name].copy()
        changed[[3, 77, 130, 200]] *= 30
        changes[name.replace(".", "__")] = changed
    return GGUFFile.open(tiny_gguf.write(path, "F32", **changes))
