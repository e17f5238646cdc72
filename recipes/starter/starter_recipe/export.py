"""Step 9: write the checkpoint in the jina-embeddings-v4 layout: the same bytes for the same weights.

Reads  WORK/base.safetensors, WORK/adapter-TASK.safetensors and a folder with the tokenizer files.
Writes a folder of two BF16 shards (older tensor naming) and their index, the flat file of the three adapters, the
       configuration files and the tokenizer files. The vision tower has random weights, which `eyes` replaces.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from starter_recipe.checkpoint import adapter_key
from starter_recipe.configs import adapter_config, model_config, preprocessor_config
from starter_recipe.model import TASKS

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
VISION_SEED = 11
_SHARD = "model-{:05d}-of-00002.safetensors"


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the placeholder vision tower."""

    depth: int = 2
    hidden: int = 64
    intermediate: int = 128
    output: int = 256
    merged: int = 256
    """Hidden size times the four patches that the merger joins."""


def vision_tower(shape: VisionShape) -> dict[str, Tensor]:
    """Return a tower in Qwen2.5-VL's layout with random weights, never trained."""
    generator = torch.Generator().manual_seed(VISION_SEED)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 0.02

    hidden, wide = shape.hidden, shape.intermediate
    tower = {"patch_embed.proj.weight": random(hidden, 3, 2, 14, 14)}
    for index in range(shape.depth):
        block = f"blocks.{index}."
        tower[f"{block}norm1.weight"] = tower[f"{block}norm2.weight"] = torch.ones(hidden)
        tower |= _linear(f"{block}attn.qkv", random(3 * hidden, hidden))
        tower |= _linear(f"{block}attn.proj", random(hidden, hidden))
        for name, size in (("gate_proj", (wide, hidden)), ("up_proj", (wide, hidden)), ("down_proj", (hidden, wide))):
            tower |= _linear(f"{block}mlp.{name}", random(*size))
    tower["merger.ln_q.weight"] = torch.ones(hidden)
    tower |= _linear("merger.mlp.0", random(shape.merged, shape.merged))
    tower |= _linear("merger.mlp.2", random(shape.output, shape.merged))
    return {f"visual.{name}": tensor for name, tensor in tower.items()}


def _linear(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return a weight and its zero bias."""
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(len(weight))}


def as_bf16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort by name and cast; clones, since safetensors refuses shared memory."""
    return {name: tensor.to(torch.bfloat16).clone().contiguous() for name, tensor in sorted(tensors.items())}


def write_json(path: Path, value: dict[str, Any], *, indent: int = 2) -> None:
    """Write JSON without a final newline, as the checkpoint's files have it."""
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file that others may read, which the library's own files are not."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the embedding in the first shard, everything else in the second, and the index."""
    first = {name: tensor for name, tensor in tensors.items() if name.startswith("model.embed")}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    places: dict[str, str] = {}
    for number, shard in enumerate((first, second), 1):
        name = _SHARD.format(number)
        write_tensors(folder / name, shard)
        places |= dict.fromkeys(shard, name)
    count = sum(tensor.numel() for tensor in tensors.values())
    sizes = {"total_size": 2 * count, "total_parameters": count}
    write_json(folder / "model.safetensors.index.json", {"metadata": sizes, "weight_map": dict(sorted(places.items()))})


def write_adapters(folder: Path, adapters: dict[str, dict[str, Tensor]]) -> None:
    """Write all tasks' adapters as one flat file, and its configuration."""
    folder.mkdir(exist_ok=True)
    flat = {adapter_key(task, name): tensor for task, adapter in adapters.items() for name, tensor in adapter.items()}
    write_tensors(folder / "adapter_model.safetensors", as_bf16(flat))
    write_json(folder / "adapter_config.json", adapter_config())


def export(work: Path, tokenizer_folder: Path, output: Path) -> None:
    """Write the whole checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    base = load_file(work / "base.safetensors")
    write_shards(output, as_bf16(base | vision_tower(VisionShape())))
    write_adapters(output / "adapters", {task: load_file(work / f"adapter-{task}.safetensors") for task in TASKS})
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    write_json(output / "config.json", model_config(tokenizer))
    write_json(output / "preprocessor_config.json", preprocessor_config(), indent=1)
    for name in TOKENIZER_FILES:
        if tokenizer_folder != output:
            shutil.copyfile(tokenizer_folder / name, output / name)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with the four tokenizer files")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    export(options.work, options.tokenizer, options.output)
    total = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    print(f"{options.output}: {total} bytes")


if __name__ == "__main__":
    main()
