"""Average the weights of two checkpoints that were trained from one another: base, adapters and projector.

Such averages often keep what either is good at. Reads two checkpoints, writes a third.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from starter_recipe.checkpoint import read_adapters, read_base
from starter_recipe.export import export

if TYPE_CHECKING:
    from torch import Tensor


def blend(left: dict[str, Tensor], right: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return (1 - share) * left + share * right, tensor by tensor."""
    return {name: tensor.lerp(right[name], share) for name, tensor in left.items()}


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("left", type=Path)
    parser.add_argument("right", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="weight of the second checkpoint")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    save_file(
        blend(read_base(options.left), read_base(options.right), options.share), options.output / "base.safetensors"
    )
    left, right = read_adapters(options.left), read_adapters(options.right)
    for task, adapter in left.items():
        save_file(blend(adapter, right[task], options.share), options.output / f"adapter-{task}.safetensors")
    export(options.output, options.left, options.output)


if __name__ == "__main__":
    main()
