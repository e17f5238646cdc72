"""The torch engine on a GPU: first correctness, then speed, within five minutes. Writes results/gpu-speed.json.

    python -m benchmarks.gpu_speed [--device cuda] [--layers 36] [--llama PATH] [--minutes 5]
    python -m benchmarks.gpu_speed --quick --device cpu      every line of this script, tiny, on a processor

A wrong result ends the run. Then, at the width of jina-embeddings-v4 with random weights: the peaks of bfloat16 and
int8 products, tokens a second by length and mixed from 16 to 512, a query with graphs and without, where the time goes,
memory; images a second; transformers, if it is installed, and llama.cpp beside it (`--llama`: see `gpu_peers`); several
cards together. A part for which no time is left is named in the result.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_peers, gpu_rates, measuring
from benchmarks.gpu_correctness import correctness
from benchmarks.gpu_plan import Plan, full, quick
from nestling._util.cpu import usable_threads
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.torch.attention import varlen
from nestling.engine.torch.devices import Placement, place
from nestling.errors import NestlingError

OUT_OF_TIME = "no time was left"
PARTS: dict[str, Callable[[Plan], Any]] = {
    "peaks": gpu_rates.peaks,
    "bf16": lambda plan: gpu_rates.measured(plan, ArithmeticName.BF16),
    "int8-rows": lambda plan: gpu_rates.measured(plan, ArithmeticName.INT8_ROWS),
    "images": gpu_rates.images,
    "transformers": gpu_peers.transformers,
    "llama.cpp": gpu_peers.llama,
    "several cards": gpu_rates.together,
}
"""In the order of what must be known first."""


def main(arguments: Sequence[str]) -> Path:
    """Measure, and write the result."""
    given = _given(arguments)
    on = place(given.device, threads=usable_threads())
    sizes = quick() if given.quick else full(given.layers)
    result: dict[str, Any] = {"device": about(on), "layers": sizes.shape.layers, "varlen_attention": bool(varlen())}
    name = "gpu-speed-quick" if given.quick else "gpu-speed"
    with tempfile.TemporaryDirectory() as folder, on.current():
        until = time.monotonic() + 60 * given.minutes
        plan = Plan(on, _cards(on), sizes, Path(folder), given.llama, until)
        result["correctness"] = []
        for one in correctness(plan):
            print(one, flush=True)
            result["correctness"].append(one)
        path = measuring.write(name, result)
        if bad := [one["what"] for one in result["correctness"] if not one["passed"]]:
            sys.exit(f"wrong: {', '.join(bad)}")
        for part, measure in PARTS.items():
            result[part] = OUT_OF_TIME if plan.is_over else _measured(measure, plan)
            print(part, result[part], flush=True)
            path = measuring.write(name, result)  # after every part: the card may be taken away
    return path


def _measured(measure: Callable[[Plan], Any], plan: Plan) -> Any:  # noqa: ANN401 - what a part has to say
    try:
        return measure(plan)
    except (NestlingError, RuntimeError) as error:
        return {"failed": str(error)}


def _given(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--llama", type=Path, help="llama-bench, or a Python that has llama-cpp-python")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args(arguments)


def about(on: Placement) -> dict[str, Any]:
    """The device and what it runs with."""
    found: dict[str, Any] = {"name": str(on.device), "torch": torch.__version__, "cuda": torch.version.cuda}
    if on.device.type == "cuda":
        found |= _card(on)  # on a card
    return found


def _card(on: Placement) -> dict[str, Any]:
    import triton  # on a card

    card = torch.cuda.get_device_properties(on.device)  # on a card
    found = {"card": card.name, "sm": [card.major, card.minor], "memory_bytes": card.total_memory}  # on a card
    return found | {"hip": torch.version.hip, "triton": triton.__version__}  # on a card


def _cards(on: Placement) -> list[Placement]:
    """All cards of this kind; on a processor itself twice, to try the script."""
    if on.device.type != "cuda":
        return [on, on]
    every = range(torch.cuda.device_count())  # on a card
    return [place(f"cuda:{index}", threads=on.threads) for index in every]  # on a card


if __name__ == "__main__":
    print(main(sys.argv[1:]))
