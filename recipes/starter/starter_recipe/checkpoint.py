"""Reads a checkpoint in the jina-embeddings-v4 layout: base weights, the three adapters, the tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from starter_recipe.model import PROJECTOR, TASKS, Embedder, Shape

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_FILE_PREFIX = "base_model.model."


def adapter_key(task: str, name: str) -> str:
    """Turn a layer's adapter name ("model.layers.0.mlp.up_proj:A") into the name it has in the adapter file."""
    layer, side = name.split(":")
    if layer != PROJECTOR:
        layer = layer.replace("model.layers", "model.language_model.layers", 1)
    return f"{_FILE_PREFIX}{layer}.lora_{side}.{task}.weight"


def shape_of(folder: Path) -> Shape:
    """Read the sizes of a checkpoint's text tower."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        multi_vector=config["multi_vector_projector_dim"],
    )


def read_base(folder: Path) -> dict[str, Tensor]:
    """Read the base weights in float32, the vision tower left out."""
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    weights: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        weights |= load_file(folder / name)
    return {name: tensor.float() for name, tensor in weights.items() if not name.startswith("visual.")}


def read_adapters(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read each task's adapter in float32, keyed as `Embedder.set_adapter` wants it."""
    config = json.loads((folder / "adapters" / "adapter_config.json").read_text("utf-8"))
    assert config["r"] == config["lora_alpha"], "the recipe's model takes a scale of 1 for granted"
    flat = load_file(folder / "adapters" / "adapter_model.safetensors")
    names = [f"{name}:{side}" for name, _ in Embedder(shape_of(folder)).linears() for side in "AB"]
    return {task: {name: flat[adapter_key(task, name)].float() for name in names} for task in TASKS}


def load_model(folder: Path, task: str | None = None) -> Embedder:
    """Return the model of a checkpoint, with one task's adapter or none."""
    model = Embedder(shape_of(folder))
    model.load_state_dict(read_base(folder))
    if task is not None:
        model.set_adapter(read_adapters(folder)[task])
    return model.eval()
