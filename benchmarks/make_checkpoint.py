"""Write a random checkpoint of jina-embeddings-v4's true shape, to measure conversion and engines at full size.

    python benchmarks/make_checkpoint.py --shape jina-v4 --out DIR     (8 GB, half a minute)

Shapes, names, counts and configuration values are the published ones; the weights are noise (normal, 0.02; norms
about 1) that repeats with a period of 8,388,593 values and starts elsewhere in every tensor. The tokenizer is the
starter's with made-up merges on top, up to the published 151,643 entries, and the published special tokens at their
ids. Streams: 211 MB of memory at its peak. Writes only to the folder given, which may not hold a checkpoint yet.
"""

import argparse
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

STARTER = Path(__file__).parents[1] / "data" / "src" / "nestling_data" / "starter" / "checkpoint"
TASKS = ("retrieval", "text-matching", "code")
PERIOD = 8_388_593  # prime, so that the noise does not repeat from row to row
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
NOT_SPECIAL = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Vision:
    """The shape of the vision tower."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    in_channels: int = 3
    spatial_merge_size: int = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a checkpoint; `counts` are base, projector and one adapter, where they are published."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    entries: int
    vocab: int
    projected: int
    rank: int
    sections: tuple[int, int, int]
    vision: Vision
    counts: tuple[int, int, int] | None = None


SHAPES = {
    "jina-v4": Shape(
        layers=36, hidden=2048, heads=16, kv_heads=2, intermediate=11008, entries=151643, vocab=151936, projected=128,
        rank=32, sections=(16, 24, 24), vision=Vision(32, 1280, 3420, 16),
        counts=(3_754_622_976, 262_272, 59_936_768),
    ),
    "jina-v4-short": Shape(
        layers=4, hidden=2048, heads=16, kv_heads=2, intermediate=11008, entries=24200, vocab=24256, projected=128,
        rank=32, sections=(16, 24, 24), vision=Vision(1, 32, 48, 2),
    ),
    "tiny": Shape(
        layers=2, hidden=64, heads=4, kv_heads=2, intermediate=96, entries=24200, vocab=24256, projected=32, rank=4,
        sections=(2, 3, 3), vision=Vision(1, 32, 48, 2),
    ),
}  # fmt: skip


def text_shapes(shape: Shape) -> Shapes:
    """The text tower, in the older naming."""
    shapes: Shapes = {"model.embed_tokens.weight": (shape.vocab, shape.hidden), "model.norm.weight": (shape.hidden,)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": size for name, size in matrices(shape).items()}
        shapes |= {
            f"{prefix}self_attn.{name}_proj.bias": (matrices(shape)[f"self_attn.{name}_proj"][0],) for name in "qkv"
        }
        shapes |= {f"{prefix}{name}_layernorm.weight": (shape.hidden,) for name in ("input", "post_attention")}
    return shapes


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """The seven matrices of a layer: (out, in)."""
    hidden, keys, inner = shape.hidden, shape.hidden // shape.heads * shape.kv_heads, shape.intermediate
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def vision_shapes(shape: Shape) -> Shapes:
    """The vision tower of Qwen2.5-VL."""
    vision = shape.vision
    wide, inner = vision.hidden_size, vision.intermediate_size
    merged = wide * vision.spatial_merge_size**2
    linear = {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide)}
    linear |= {"mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner)}
    patch = (wide, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    shapes: Shapes = {"patch_embed.proj.weight": patch, "merger.ln_q.weight": (wide,)}
    for block in range(vision.depth):
        shapes |= {f"blocks.{block}.{name}": size for name, size in with_bias(linear).items()}
        shapes |= {f"blocks.{block}.norm{number}.weight": (wide,) for number in (1, 2)}
    shapes |= with_bias({"merger.mlp.0": (merged, merged), "merger.mlp.2": (shape.hidden, merged)})
    return {f"visual.{name}": size for name, size in shapes.items()}


def with_bias(linear: dict[str, tuple[int, int]]) -> Shapes:
    weights: Shapes = {f"{name}.weight": size for name, size in linear.items()}
    return weights | {f"{name}.bias": size[:1] for name, size in linear.items()}


def projector_shapes(shape: Shape) -> Shapes:
    return with_bias({"multi_vector_projector": (shape.projected, shape.hidden)})


def adapter_shapes(shape: Shape) -> Shapes:
    """All tasks' adapters, in one flat file."""
    modules = {
        f"model.language_model.layers.{layer}.{name}": size
        for layer in range(shape.layers)
        for name, size in matrices(shape).items()
    }
    modules["multi_vector_projector"] = (shape.projected, shape.hidden)
    sides = {
        "A": {module: (shape.rank, width) for module, (_, width) in modules.items()},
        "B": {module: (out, shape.rank) for module, (out, _) in modules.items()},
    }
    return {
        f"base_model.model.{module}.lora_{side}.{task}.weight": size
        for side, sizes in sides.items()
        for module, size in sizes.items()
        for task in TASKS
    }


class Noise:
    """BF16 weights without end from one block of them."""

    def __init__(self, seed: int) -> None:
        values = np.random.default_rng(seed).standard_normal(PERIOD, np.float32) * np.float32(0.02)
        self._weights, self._norms = bf16(values), bf16(values + np.float32(1))
        self._starts = random.Random(seed)  # noqa: S311 - not for secrets

    def pieces(self, name: str, count: int) -> Iterator[NDArray[np.uint16]]:
        """`count` weights for the tensor of this name, in pieces."""
        block = self._norms if "norm" in name or "ln_q" in name else self._weights
        at = self._starts.randrange(PERIOD)
        while count:
            piece = block[at : at + count]
            yield piece
            count, at = count - piece.size, 0


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32: cut off, which is enough for noise."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, shapes: Shapes, noise: Noise) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in shapes.items():
        end = offset + 2 * prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, size in shapes.items():
            write_tensor(file, noise.pieces(name, prod(size)))
    print(f"{path}: {len(shapes)} tensors, {offset / 2:,.0f} parameters")


def write_tensor(file: BinaryIO, pieces: Iterator[NDArray[np.uint16]]) -> None:
    for piece in pieces:
        file.write(piece.data)


def write_shards(folder: Path, shapes: Shapes, noise: Noise) -> None:
    """Two shards of about one size, and their index."""
    total, done = sum(map(prod, shapes.values())), 0
    parts: tuple[Shapes, Shapes] = ({}, {})
    for name, size in sorted(shapes.items()):
        parts[done > total // 2][name] = size
        done += prod(size)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        write_safetensors(folder / shard, part, noise)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def tokenizer_json(shape: Shape) -> dict[str, Any]:
    """The starter's tokenizer, grown by random merges to `entries`, with Qwen2.5's special tokens behind them."""
    tokenizer: dict[str, Any] = json.loads((STARTER / "tokenizer.json").read_text("utf-8"))
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    pool, chance = list(vocabulary), random.Random(7)  # noqa: S311 - not for secrets
    while len(vocabulary) < shape.entries:
        pair = chance.choice(pool), chance.choice(pool)
        if (token := "".join(pair)) not in vocabulary:
            vocabulary[token] = len(vocabulary)
            merges.append(list(pair))
    names = dict.fromkeys(SPECIAL, True) | dict.fromkeys(NOT_SPECIAL, False)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] = [
        {"id": shape.entries + number, "content": name, **flags, "special": special}
        for number, (name, special) in enumerate(names.items())
    ]
    return tokenizer


def config_json(shape: Shape) -> dict[str, Any]:
    text = {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False, "tie_word_embeddings": True,
        "rope_scaling": {"mrope_section": list(shape.sections), "rope_type": "default", "type": "default"},
        "vocab_size": shape.vocab, "torch_dtype": "bfloat16",
    }  # fmt: skip
    depth, every = shape.vision.depth, min(8, shape.vision.depth)
    vision = asdict(shape.vision) | {
        "out_hidden_size": shape.hidden, "model_type": "qwen2_5_vl", "hidden_act": "silu", "window_size": 112,
        "fullatt_block_indexes": list(range(every - 1, depth, every)),
    }  # fmt: skip
    names = {"model_type": "jina_embeddings_v4", "architectures": ["JinaEmbeddingsV4Model"], "task_names": list(TASKS)}
    return {**names, **text, "text_config": text, "vision_config": vision}


def adapter_json(shape: Shape) -> dict[str, Any]:
    return {
        "peft_type": "LORA", "r": shape.rank, "lora_alpha": shape.rank, "bias": "none", "use_dora": False,
        "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "task_names": list(TASKS),
    }  # fmt: skip


def check_counts(shape: Shape) -> None:
    """The published counts, or the shapes above are wrong."""
    adapters = adapter_shapes(shape)
    parts = ({**text_shapes(shape), **vision_shapes(shape)}, projector_shapes(shape), adapters)
    base, projector, all_adapters = (sum(map(prod, part.values())) for part in parts)
    found = base, projector, all_adapters // len(TASKS)
    assert shape.counts in (None, found), f"{found} instead of {shape.counts}"
    print(f"base {base:,}, projector {projector:,}, adapters {len(TASKS)} x {found[2]:,} in {len(adapters)} tensors")


def main() -> None:
    """Write a checkpoint of the shape that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="jina-v4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    shape, folder = SHAPES[arguments.shape], arguments.out
    check_counts(shape)
    (folder / "adapters").mkdir(parents=True)
    noise = Noise(arguments.seed)
    write_shards(folder, text_shapes(shape) | vision_shapes(shape) | projector_shapes(shape), noise)
    write_safetensors(folder / "adapters" / "adapter_model.safetensors", adapter_shapes(shape), noise)
    write_json(folder / "adapters" / "adapter_config.json", adapter_json(shape))
    write_json(folder / "config.json", config_json(shape))
    write_json(folder / "tokenizer.json", tokenizer_json(shape))


if __name__ == "__main__":
    main()
