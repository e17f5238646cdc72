"""The last step of the eyes: put the trained tower into a checkpoint, in place of the one that it has.

Reads  WORK/eyes.safetensors and a checkpoint in the jina-embeddings-v4 layout.
Writes a checkpoint whose texts' weights are the same bytes as before: the same bytes for the same weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from starter_recipe.export import as_bf16, write_json, write_shards
from starter_recipe.eyes.tower import MERGE, PATCH, SIDE, TowerShape, VisionTower

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "visual."


def vision_config(shape: TowerShape) -> dict[str, Any]:
    """What a tower's shape changes in `vision_config`."""
    return {
        "depth": shape.depth,
        "hidden_size": shape.hidden,
        "num_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "out_hidden_size": shape.output,
        "window_size": SIDE * PATCH,
        "spatial_merge_size": MERGE,
        "fullatt_block_indexes": [block for block in range(shape.depth) if shape.is_full(block)],
    }


def export(tower: VisionTower, checkpoint: Path, output: Path) -> None:
    """Write the checkpoint with another tower."""
    shutil.copytree(checkpoint, output, dirs_exist_ok=True)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text("utf-8"))
    kept: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        kept |= {key: value for key, value in load_file(checkpoint / name).items() if not key.startswith(PREFIX)}
    own = {PREFIX + name: tensor for name, tensor in tower.state_dict().items()}
    write_shards(output, as_bf16(kept | own))
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    config["vision_config"] |= vision_config(tower.shape)
    write_json(output / "config.json", config)


def load_tower(path: Path) -> VisionTower:
    """Read a trained tower."""
    tower = VisionTower()
    tower.load_state_dict(load_file(path))
    return tower.eval()


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work-eyes"))
    parser.add_argument("--checkpoint", type=Path, required=True, help="whose texts the tower was trained for")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    tower = load_tower(options.work / "eyes.safetensors")
    export(tower, options.checkpoint, options.output)
    print(f"{options.output}: a tower of {sum(one.numel() for one in tower.parameters())} parameters")


if __name__ == "__main__":
    main()
