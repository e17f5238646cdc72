"""The battery's two commands: `build --output DIR` and `judge CANDIDATE --against FIRST SHIPPED --battery DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from starter_recipe.battery.sets import chosen_sets

BENCHMARKS = Path(__file__).parents[4] / "data" / "src" / "nestling_data" / "sets"


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m starter_recipe.battery", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("build", help="fetch the packages and write the sets")
    made.add_argument("--output", type=Path, required=True, help="the battery's folder")
    judged = commands.add_parser("judge", help="compare a checkpoint with earlier ones")
    judged.add_argument("candidate", type=Path)
    judged.add_argument("--against", type=Path, nargs="+", required=True, help="earlier checkpoints")
    judged.add_argument("--battery", type=Path, required=True, help="the folder that build wrote")
    judged.add_argument("--benchmarks", type=Path, default=BENCHMARKS, help="folder of the shipped sets")
    judged.add_argument("--sets", nargs="+", default=[], help="these alone")
    judged.add_argument("--withheld", action="store_true", help="look at the withheld sets too: once, at the end")
    judged.add_argument("--output", type=Path, help="write the figures here (JSON)")
    judged.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    sys.exit(_build(options) if options.command == "build" else _judge(options))


def _build(options: argparse.Namespace) -> None:
    from starter_recipe.battery import build, fetch

    build.build(fetch.fetch(options.output), options.output)


def _judge(options: argparse.Namespace) -> str | None:
    try:
        names = chosen_sets(options.sets, look=options.withheld)
    except ValueError as error:
        return f"judge: {error}"
    import torch

    from starter_recipe.battery import judge

    torch.set_num_threads(options.threads)
    sets = judge.places(options.battery, options.benchmarks, names)
    rows = judge.judge(options.candidate, options.against, sets, options.battery / "scores")
    print(judge.report(rows, options.output))
    return None


if __name__ == "__main__":
    main()
