"""The torch engine on a GPU: first correctness, then speed. Five minutes; writes benchmarks/results/gpu-speed.json.

    python -m benchmarks.gpu_speed [DEVICE=cuda] [LAYERS=36]

Correctness first, and a failure ends the run: our kernels against their formulas at the model's own sizes, the starter
and a small model with outliers in every arithmetic against the numpy reference, a text alone against the same in a
batch. Then, at the width of jina-embeddings-v4 with random weights: the peaks of bfloat16 and int8 products, tokens a
second by length and mixed from 16 to 512, where the time goes, memory. LAYERS=1 and DEVICE=cpu try the script itself.
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests import tiny_gguf
from torch import Tensor

from benchmarks import measuring
from nestling._util.cpu import usable_threads
from nestling.engine import batching
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.protocol import Item, TokenIds, plain
from nestling.engine.torch.attention import varlen
from nestling.engine.torch.choice import choose, fastest
from nestling.engine.torch.devices import Placement, place
from nestling.engine.torch.engine import TorchEngine
from nestling.engine.torch.products import PlainProducts, quantized
from nestling.errors import EngineError
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import FILE_TYPES, QuantType
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
from nestling.vectors import Floats, paired_cosine

BOUNDS = {ArithmeticName.BF16: 2e-5, ArithmeticName.INT8_ROWS: 1.4e-4}
"""Twice what a CPU loses in the same arithmetic on the starter, 1 - cosine at worst."""
LENGTHS = (16, 64, 256, 512, 2048, 8192, 16384)
MIXED = 256
"""Texts of 16 to 512 tokens."""
ROWS = 8192
TEXTS = (
    "Query: a", "Query: A beautiful sunset over the beach", "Passage: 海滩上美丽的日落",
    "Passage: " + "The lock is taken before the file is read. " * 12,
)  # fmt: skip


def full_shape(layers: int) -> Hyperparameters:
    """jina-embeddings-v4's, of so many layers."""
    return Hyperparameters(
        layers=layers, hidden=2048, heads=16, kv_heads=2, feed_forward=11008, rms_eps=1e-6, rope_theta=1e6,
        rope_sections=(16, 24, 24), context=32768, vocabulary=151936,
    )  # fmt: skip


def main(device: str, layers: int) -> None:
    on = place(device, threads=usable_threads())
    result: dict[str, Any] = {"device": _card(device), "layers": layers, "varlen_attention": varlen() is not None}
    with tempfile.TemporaryDirectory() as folder:
        result["correctness"] = list(correctness(on, Path(folder)))
        for one in result["correctness"]:
            print(one, flush=True)
        if bad := [one for one in result["correctness"] if one["loss"] > one["allowed"]]:
            sys.exit(f"wrong: {bad}")
        shape = full_shape(layers)
        path = write_noise(Path(folder) / "noise.gguf", shape)
        result["peaks"] = peaks(on, shape)
        result["speed"] = [measured(path, on, arithmetic) for arithmetic in BOUNDS]
    measuring.write("gpu-speed", result)


def _card(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": device, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.startswith("cuda"):
        found |= {"card": torch.cuda.get_device_name(device), "sm": torch.cuda.get_device_capability(device)}
    return found


# Correctness.


def correctness(on: Placement, folder: Path) -> Iterator[dict[str, Any]]:
    """What was compared, the worst 1 - cosine, what is allowed."""
    if not on.is_cpu:
        yield from kernels_agree(on)
    yield from (_line(f"starter {name} {arithmetic}", *one) for name, arithmetic, one in starters(on))
    file = outliers(folder / "outliers.gguf")
    items = plain([_ids(length, tiny_gguf.LAYERS) for length in (3, 60, 700)])
    expected = ReferenceEngine(file).pool(items)
    for arithmetic, allowed in BOUNDS.items():
        engine = TorchEngine(file, on=on, arithmetic=arithmetic)
        yield _line(f"outliers {arithmetic}", loss(engine.pool(items), expected), 10 * allowed)
        alone = np.concatenate([engine.pool([item]) for item in items])
        yield _line(f"alone and together {arithmetic}", loss(engine.pool(items), alone), allowed)
        engine.close()


def kernels_agree(on: Placement) -> Iterator[dict[str, Any]]:
    """Each kernel and its formula at the model's sizes: rounded rows differ by a step at most."""
    from nestling.engine.torch.kernels import TILES, KernelProducts

    shape, plain_ones, ours = full_shape(1), PlainProducts(), KernelProducts()
    x = torch.randn(1000, shape.hidden, device=on.device)
    both = torch.randn(1000, 2 * shape.feed_forward, device=on.device).bfloat16()
    for name, found, expected in (
        ("norm", ours.normed(x, 1e-6), plain_ones.normed(x, 1e-6)),
        ("gated", ours.gated(both), plain_ones.gated(both)),
    ):
        yield _line(f"kernel {name}: mean step", float((found[0].int() - expected[0].int()).abs().float().mean()), 0.01)
    rows, w = quantized(x), quantized(torch.randn(2 * shape.feed_forward, shape.hidden, device=on.device))
    expected = plain_ones.times(rows, w, None, torch.float32)
    for tiles in TILES:
        try:
            found = KernelProducts(tiles).times(rows, w, None, torch.bfloat16).float()
        except RuntimeError as error:
            print(f"{tiles}: {error}", flush=True)
            continue
        yield _line(f"kernel product {tuple(tiles)}", float((found - expected).norm() / expected.norm()), 0.005)


def starters(on: Placement) -> Iterator[tuple[str, str, tuple[float, float]]]:
    for file_type in ("F16", "Q4_K_M"):
        file = GGUFFile.open(local.resolve(f"starter-retrieval:{file_type}"))
        items = plain(Tokenizer.from_gguf(file).encode(TEXTS))
        expected = ReferenceEngine(file).pool(items)
        for arithmetic, allowed in BOUNDS.items():
            engine = TorchEngine(file, on=on, arithmetic=arithmetic)
            yield file_type, arithmetic, (loss(engine.pool(items), expected), allowed)
            engine.close()
        print(f"chosen for {file_type}: {choose(file, on)}", flush=True)


def outliers(path: Path) -> GGUFFile:
    """A small random model with four channels thirty times the others, as real decoders have them."""
    arrays, changes = tiny_gguf.weights(), dict[str, Any]()
    for name in [name for name in arrays if "_norm" in name and name.startswith("blk.")]:
        changes[name.replace(".", "__")] = arrays[name].copy()
        changes[name.replace(".", "__")][[3, 77, 130, 200]] *= 30
    return GGUFFile.open(tiny_gguf.write(path, "F32", **changes))


def loss(found: Floats, expected: Floats) -> float:
    return float((1 - paired_cosine(found, expected)).max())


def _line(what: str, found: float, allowed: float) -> dict[str, Any]:
    return {"what": what, "loss": found, "allowed": allowed}


# Speed.


def write_noise(path: Path, shape: Hyperparameters) -> Path:
    """A BF16 file of this shape with random weights, the same numbers over and over."""
    numbers = {name: Field.uint32(value) for name, value in (
        ("context_length", shape.context), ("embedding_length", shape.hidden), ("block_count", shape.layers),
        ("feed_forward_length", shape.feed_forward), ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads), ("pooling_type", 1),
    )}  # fmt: skip
    numbers["attention.layer_norm_rms_epsilon"] = Field.float32(shape.rms_eps)
    numbers["rope.freq_base"] = Field.float32(shape.rope_theta)
    fields = {"general.architecture": Field.string("qwen2vl"), "general.file_type": Field.uint32(FILE_TYPES["BF16"])}
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32) / np.float32(shape.hidden**0.5)
    plans = [_noise_plan(name, size, noise) for name, size in shape.tensors().items()]
    write_gguf(path, fields | {f"qwen2vl.{key}": value for key, value in numbers.items()}, plans)
    return path


def _noise_plan(name: str, size: tuple[int, ...], noise: Floats) -> TensorPlan:
    kind = QuantType.BF16 if len(size) > 1 else QuantType.F32
    return TensorPlan(name, size, kind, partial(_noise_pieces, size, noise))


def _noise_pieces(size: tuple[int, ...], noise: Floats) -> Iterator[NDArray[Any]]:
    if len(size) == 1:
        yield np.ones(size, np.float32)
        return
    rows = len(noise) // size[1]
    block = (noise[: rows * size[1]].view(np.uint32) >> 16).astype(np.uint16).reshape(rows, size[1]).view(np.uint8)
    for start in range(0, size[0], rows):
        yield block[: min(rows, size[0] - start)]


def peaks(on: Placement, shape: Hyperparameters) -> list[dict[str, Any]]:
    """TFLOP/s of each product of a layer over `ROWS` rows: bfloat16 by torch, int8 by each way of cutting it."""
    width = shape.hidden + 2 * shape.kv_heads * shape.head_dim
    found = []
    sizes = ((shape.hidden, width), (shape.hidden, 2 * shape.feed_forward), (shape.feed_forward, shape.hidden))
    for depth, channels in sizes:
        x = torch.randn(ROWS if not on.is_cpu else 64, depth, device=on.device)
        w = torch.randn(channels, depth, device=on.device)
        work, narrow_x, narrow_w = 2e-12 * len(x) * depth * channels, x.bfloat16(), w.bfloat16()
        seconds = fastest(lambda a=narrow_x, b=narrow_w: a @ b.T, on)  # type: ignore[misc]
        found.append({"product": [depth, channels], "bf16": work / seconds} | _int8_peaks(x, w, work, on))
    return found


def _int8_peaks(x: Tensor, w: Tensor, work: float, on: Placement) -> dict[str, float]:
    if on.is_cpu:
        return {}
    from nestling.engine.torch.kernels import TILES, KernelProducts

    rows, matrix, found = quantized(x), quantized(w), {}
    for tiles in TILES:
        try:
            seconds = fastest(partial(KernelProducts(tiles).times, rows, matrix, None, torch.bfloat16), on)
        except RuntimeError:  # more shared memory than this card has: said above
            continue
        found[f"int8 {tuple(tiles)}"] = work / seconds
    return found


def measured(path: Path, on: Placement, arithmetic: ArithmeticName) -> dict[str, Any]:
    """Tokens a second by length and mixed, where the time went, memory."""
    engine = TorchEngine(GGUFFile.open(path), on=on, arithmetic=arithmetic)
    found: dict[str, Any] = {"arithmetic": arithmetic, "why": engine.reason, "weights_bytes": engine.memory()[0]}
    tokens = engine.token_budget if not on.is_cpu else 128
    for length in (one for one in LENGTHS if not on.is_cpu or one <= tokens):
        items = plain([_ids(length, seed) for seed in range(max(1, tokens // length))])
        try:
            found[f"tokens/s at {length}"] = sum(map(len, items)) / fastest(partial(engine.pool, items), on)
        except EngineError as error:
            found[f"tokens/s at {length}"] = str(error)
    lengths = np.random.default_rng(0).integers(16, 513, MIXED if not on.is_cpu else 2).tolist()
    items = plain([_ids(length, length) for length in lengths])
    found["tokens/s mixed"] = sum(lengths) / fastest(partial(_in_batches, engine, items), on)
    found["peak_bytes"] = engine.memory()[1]
    engine.close()
    profiled = TorchEngine(GGUFFile.open(path), on=on, arithmetic=arithmetic, profile=True)
    _in_batches(profiled, items)
    found["profile_s"] = profiled.profile()
    profiled.close()
    return found


def _in_batches(engine: TorchEngine, items: list[Item]) -> None:
    for places in batching.plan([len(item) for item in items], engine.token_budget):
        engine.pool([items[index] for index in places])


def _ids(length: int, seed: int) -> TokenIds:
    return np.random.default_rng(seed).integers(0, len(tiny_gguf.tokens()), length).astype(np.int32)


if __name__ == "__main__":
    main((sys.argv[1:2] or ["cuda"])[0], int((sys.argv[2:3] or ["36"])[0]))
