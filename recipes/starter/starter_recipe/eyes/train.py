"""Step 3 of the eyes: train the tower; stopped at any time, the same command resumes.

Reads  WORK/pictures.npy, WORK/pictures.json, the fonts in WORK/debian, the text recipe's rows.jsonl, the checkpoint.
Writes WORK/eyes.safetensors, WORK/training.pt (what resuming needs) and WORK/losses.jsonl (the curve).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from starter_recipe.eyes.helpers import Helpers
from starter_recipe.eyes.losses import Losses
from starter_recipe.eyes.samples import Pictures, Texts
from starter_recipe.eyes.seeing import Eyes, Reader
from starter_recipe.eyes.tower import VisionTower
from starter_recipe.model import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

RATE, DECAY, BETAS = 2e-3, 0.01, (0.9, 0.98)
WARM_UP_STEPS = 200
COOL_SHARE, FLOOR = 0.25, 0.02
"""The last share of the steps, in which the rate falls to this part."""
SAVE_EVERY = 100
SEED = 5
PHASES = (
    (0.5, {"picture": 0.4, "cells": 0.6}),
    (0.75, {"picture": 0.45, "cells": 0.25, "strip": 0.3}),
    (1.0, {"picture": 0.4, "strip": 0.3, "page": 0.3}),
)
"""Until which part of the steps, and the share of each kind of step in it."""


def rate_factor(step: int, steps: int) -> float:
    """Warm-up, constant, linear fall."""
    cool = (steps - step) / max(1, COOL_SHARE * steps)
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (FLOOR + (1 - FLOOR) * min(1.0, cool))


def kind_of(step: int, steps: int, random: np.random.Generator) -> str:
    """Draw a step's kind."""
    mix = next(mix for until, mix in PHASES if step < until * steps)
    return str(random.choice(list(mix), p=list(mix.values())))


def optimiser_of(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW, without decay of biases and norms."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for parameter in module.parameters():
        groups[parameter.dim() > 1].append(parameter)
    parts = [{"params": groups[True], "weight_decay": DECAY}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(parts, lr=RATE, betas=BETAS)


@dataclass(slots=True)
class Training:
    """A tower and its helpers in training, and how far they are."""

    work: Path
    tower: VisionTower
    helpers: Helpers
    optimiser: torch.optim.Optimizer
    step: int = 0
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def resume(cls, work: Path, concepts: int) -> Training:
        """Start anew, or where the last run stopped."""
        tower = VisionTower().train()
        helpers = Helpers(tower.shape, concepts)
        training = cls(work, tower, helpers, optimiser_of(nn.ModuleList((tower, helpers))))
        if (work / "training.pt").exists():
            state = torch.load(work / "training.pt", weights_only=True)
            tower.load_state_dict(state["tower"])
            helpers.load_state_dict(state["helpers"])
            training.optimiser.load_state_dict(state["optimiser"])
            training.step = state["step"]
        return training

    def save(self) -> None:
        """Write the tower, and everything that resuming needs."""
        parts = {"tower": self.tower, "helpers": self.helpers, "optimiser": self.optimiser}
        state = {name: part.state_dict() for name, part in parts.items()} | {"step": self.step}
        torch.save(state, self.work / "training.pt.part")
        (self.work / "training.pt.part").replace(self.work / "training.pt")
        save_file(self.tower.state_dict(), self.work / "eyes.safetensors")
        means = {kind: round(float(np.mean(values)), 4) for kind, values in sorted(self.sums.items())}
        with (self.work / "losses.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(json.dumps({"step": self.step, "cpu_s": round(time.process_time()), **means}) + "\n")
        print(self.step, means, flush=True)
        self.sums.clear()

    def run(self, steps: dict[str, Callable[[np.random.Generator], Tensor]], last: int, total: int) -> None:
        """Train up to step `last` of a schedule of `total`."""
        while self.step < last:
            random = np.random.default_rng((SEED, self.step))
            kind = kind_of(self.step, total, random)
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * rate_factor(self.step, total)
            loss = steps[kind](random)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            for part in (self.tower, self.helpers):
                torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            self.optimiser.step()
            self.sums[kind].append(loss.item())
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == last:
                self.save()


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work-eyes"))
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl of the text recipe")
    parser.add_argument("--checkpoint", type=Path, required=True, help="its text tower is the frozen teacher")
    parser.add_argument("--steps", type=int, required=True, help="length of the whole schedule")
    parser.add_argument("--until", type=int, help="stop here; the schedule stays that of --steps")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    readers = {task: Reader(options.checkpoint, task) for task in TASKS}
    pictures = Pictures(options.work)
    texts = Texts(options.rows, options.work, readers["retrieval"].tokenizer)
    training = Training.resume(options.work, len(pictures.names))
    losses = Losses(Eyes(training.tower, readers), training.helpers, pictures, texts)
    steps = {kind: getattr(losses, kind) for kind in ("picture", "cells", "strip", "page")}
    training.run(steps, options.until or options.steps, options.steps)


if __name__ == "__main__":
    main()
