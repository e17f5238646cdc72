"""Step 3 of the eyes: train the tower; stopped at any time, the same command resumes.

Two processes, one for text and one for pictures, each with half of the threads: a step is a batch of each, and the
processes add their gradients.

Reads  WORK/pictures.npy, WORK/pictures.json, the fonts in WORK/debian, the text recipe's rows.jsonl, the checkpoint.
Writes WORK/eyes.safetensors, WORK/training.pt (what resuming needs) and WORK/losses-text.jsonl, losses-pictures.jsonl
       (the curves).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import distributed, multiprocessing, nn

from starter_recipe.eyes.helpers import Helpers
from starter_recipe.eyes.losses import Losses
from starter_recipe.eyes.samples import Pictures, Texts
from starter_recipe.eyes.seeing import Eyes, Reader
from starter_recipe.eyes.tower import VisionTower
from starter_recipe.model import TASKS

RATE, DECAY, BETAS = 1.5e-3, 0.01, (0.9, 0.98)
WARM_UP_STEPS = 100
COOL_SHARE, FLOOR = 0.4, 0.02
"""The last share of the steps, in which the rate falls to this part."""
SAVE_EVERY = 100
SEED = 5
SIDES = ("text", "pictures")
PHASES = {
    "text": (
        (0.25, {"cells": 1.0}),
        (0.6, {"cells": 0.4, "strip": 0.4, "page": 0.2}),
        (1.0, {"cells": 0.1, "strip": 0.4, "page": 0.5}),
    ),
    "pictures": ((0.3, {"concept": 1.0}), (1.0, {"picture": 1.0})),
}
"""Of each process: until which part of the steps, and the share of each kind of batch in it."""


def rate_factor(step: int, steps: int) -> float:
    """Warm-up, constant, linear fall."""
    cool = (steps - step) / max(1, COOL_SHARE * steps)
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (FLOOR + (1 - FLOOR) * min(1.0, cool))


def kind_of(side: str, step: int, steps: int, random: np.random.Generator) -> str:
    """Draw the kind of one side's batch."""
    mix = next(mix for until, mix in PHASES[side] if step < until * steps)
    return str(random.choice(list(mix), p=list(mix.values())))


def optimiser_of(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW, without decay of biases and norms."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for parameter in module.parameters():
        groups[parameter.dim() > 1].append(parameter)
    parts = [{"params": groups[True], "weight_decay": DECAY}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(parts, lr=RATE, betas=BETAS, fused=True)


@dataclass(slots=True)
class Training:
    """A tower and its helpers in training, one process's side of it, and how far they are."""

    work: Path
    side: str
    tower: VisionTower
    helpers: Helpers
    optimiser: torch.optim.Optimizer
    step: int = 0
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def resume(cls, work: Path, side: str, concepts: int) -> Training:
        """Start anew, or where the last run stopped."""
        tower = VisionTower().train()
        helpers = Helpers(tower.shape, concepts)
        training = cls(work, side, tower, helpers, optimiser_of(nn.ModuleList((tower, helpers))))
        if (work / "training.pt").exists():
            state = torch.load(work / "training.pt", weights_only=True)
            tower.load_state_dict(state["tower"])
            helpers.load_state_dict(state["helpers"])
            training.optimiser.load_state_dict(state["optimiser"])
            training.step = state["step"]
        return training

    def save(self) -> None:
        """Write this side's curve; one of the sides also the tower, and everything that resuming needs."""
        means = {kind: round(float(np.mean(values)), 4) for kind, values in sorted(self.sums.items())}
        with (self.work / f"losses-{self.side}.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(json.dumps({"step": self.step, "cpu_s": round(time.process_time()), **means}) + "\n")
        self.sums.clear()
        if self.side == SIDES[0]:
            parts = {"tower": self.tower, "helpers": self.helpers, "optimiser": self.optimiser}
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": self.step}
            torch.save(state, self.work / "training.pt.part")
            (self.work / "training.pt.part").replace(self.work / "training.pt")
            save_file(self.tower.state_dict(), self.work / "eyes.safetensors")

    def run(self, batches: Losses, last: int, total: int) -> None:
        """Train up to step `last` of a schedule of `total`."""
        while self.step < last:
            random = np.random.default_rng((SEED, SIDES.index(self.side), self.step))
            kind = kind_of(self.side, self.step, total, random)
            loss = getattr(batches, kind)(random)
            loss.backward()
            add_gradients((self.tower, self.helpers))
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * rate_factor(self.step, total)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.sums[kind].append(loss.item())
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == last:
                self.save()


def add_gradients(modules: tuple[nn.Module, ...]) -> None:
    """Clip each module's gradient, and add those of all processes."""
    for module in modules:
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    parameters = [one for module in modules for one in module.parameters()]
    own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    flat = torch.cat([one.flatten() for one in own])
    distributed.all_reduce(flat)
    for one, part in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
        one.grad = part.view_as(one)


def train(rank: int, options: argparse.Namespace) -> None:
    """Be one of the processes."""
    torch.set_num_threads(max(1, options.threads // len(SIDES)))
    meeting = f"file://{(options.work / 'meeting').resolve()}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(SIDES))
    readers = {task: Reader(options.checkpoint, task) for task in TASKS}
    pictures = Pictures(options.work)
    texts = Texts(options.rows, options.work, readers["retrieval"].tokenizer) if SIDES[rank] == "text" else None
    training = Training.resume(options.work, SIDES[rank], len(pictures.names))
    training.run(Losses(Eyes(training.tower, readers), training.helpers, pictures, texts), options.until, options.steps)
    distributed.destroy_process_group()


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
    options.until = options.until or options.steps
    (options.work / "meeting").unlink(missing_ok=True)
    multiprocessing.spawn(train, (options,), nprocs=len(SIDES))


if __name__ == "__main__":
    main()
