"""A tiny checkpoint (`tests.tiny`) with a whole vision tower of four blocks, of which two see the whole image.

Heads of 24 and a feed-forward width of 100 divide by as little as the published ones (80 and 3420). The tower's weights
come from a seed of their own, so the text model is that of `tests.tiny`, bit for bit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tests.tiny import (
    HIDDEN,
    SMALL_VOCAB,
    Noise,
    Shape,
    Tensors,
    read_raw_safetensors,
    write_json,
    write_safetensors,
    write_tiny_checkpoint,
)

BLOCKS, WIDTH, HEADS, INNER = 4, 48, 2, 100
FULL = [1, 3]
SHARD, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


def write_vision_checkpoint(folder: Path, *, vocab: int = SMALL_VOCAB, prefix: str = "visual.") -> Path:
    """Write the checkpoint into `folder` and return it; `prefix` is `visual.` or the newer `model.visual.`."""
    write_tiny_checkpoint(folder, vocab=vocab)
    noise, text = Noise(17), text_tensors(folder / SHARD)
    tower = {prefix + name: noise.tensor(name, shape) for name, shape in tower_shapes().items()}
    write_safetensors(folder / SHARD, text | tower)
    index = json.loads((folder / INDEX).read_text("utf-8"))
    others = {name: shard for name, shard in index["weight_map"].items() if shard != SHARD}
    write_json(folder / INDEX, index | {"weight_map": others | dict.fromkeys(text | tower, SHARD)})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", config | {"vision_config": vision_config()})
    return folder


def text_tensors(shard: Path) -> Tensors:
    """The tensors of a shard but for those of a tower."""
    header, data = read_raw_safetensors(shard)
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and not name.startswith("visual.")
    }


def tower_shapes() -> dict[str, Shape]:
    """Every tensor of the tower, by its name after `visual.`."""
    linear = {
        "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
    }  # fmt: skip
    every = {f"blocks.{block}.{name}": shape for block in range(BLOCKS) for name, shape in linear.items()}
    every |= {"merger.mlp.0": (4 * WIDTH, 4 * WIDTH), "merger.mlp.2": (HIDDEN, 4 * WIDTH)}
    shapes: dict[str, Shape] = {"patch_embed.proj.weight": (WIDTH, 3, 2, 14, 14), "merger.ln_q.weight": (WIDTH,)}
    shapes |= {f"blocks.{block}.norm{place}.weight": (WIDTH,) for block in range(BLOCKS) for place in (1, 2)}
    shapes |= {f"{name}.weight": shape for name, shape in every.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in every.items()}


def vision_config() -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl", "depth": BLOCKS, "hidden_size": WIDTH, "num_heads": HEADS, "hidden_act": "silu",
        "intermediate_size": INNER, "out_hidden_size": HIDDEN, "fullatt_block_indexes": FULL, "window_size": 112,
        "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3, "in_chans": 3,
    }  # fmt: skip
