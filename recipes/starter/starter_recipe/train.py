"""Step 8: train the base, then the adapters on the frozen base, then the multi-vector projector.

Reads  --start, or WORK/base.safetensors from the step before; WORK/rows.npz, WORK/pairs-*.npz and WORK/targets.npz.
Writes WORK/base.safetensors, WORK/state.pt (a rerun of `base` resumes it: delete it to start anew),
       WORK/adapter-TASK.safetensors; `projector` rewrites its own weights in all of them.
Every stage runs for a number of minutes, so a rerun gives a similar model, not the same bits.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from starter_recipe.batch_losses import BatchLosses, Step
from starter_recipe.checkpoint import load_model, read_adapters, read_base
from starter_recipe.model import PROJECTOR, TASKS, Embedder
from starter_recipe.records import PairKind

if TYPE_CHECKING:
    from collections.abc import Iterable

BASE_RATE = 6e-4
ADAPTER_RATE = 1.5e-3
PROJECTOR_RATE = 2e-3
WARM_UP_STEPS = 30
FLOOR = 0.03
REPORT_S = 60
SAVE_S = 300
# share of the batches of each kind
BASE_MIX = {"distil": 0.17, "everyday": 0.37, "retrieval": 0.2, "code": 0.14, "translate": 0.08, "keep": 0.04}
ADAPTER_MIX = {
    "retrieval": {"distil": 0.35, "retrieval": 0.65},
    "text-matching": {"distil": 0.3, "everyday": 0.35, "translate": 0.35},
    "code": {"distil": 0.2, "code": 0.8},
}
PROJECTOR_MIX = {"retrieval": "retrieval", "text-matching": "translate", "code": "code"}


class Schedule:
    """Learning rate: linear warm-up by steps, then a half cosine over the time, which counts on after a resume."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, minutes: float, *, step: int = 0, elapsed_s: float = 0
    ) -> None:
        self.optimiser = optimiser
        self._rates = [group.setdefault("peak", group["lr"]) for group in optimiser.param_groups]
        self._started = time.monotonic() - elapsed_s
        self._seconds = 60 * minutes
        self.step = step

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self._started

    def advance(self) -> bool:
        """Set the next step's rate; False when the time is over."""
        done = self.elapsed_s / self._seconds
        if done >= 1:
            return False
        self.step += 1
        factor = min(1.0, self.step / WARM_UP_STEPS) * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return True


class Progress:
    """Prints mean losses periodically."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._losses: dict[str, list[float]] = defaultdict(list)
        self._last = time.monotonic()

    def add(self, kind: str, loss: float, schedule: Schedule) -> None:
        """Add one batch's loss."""
        self._losses[kind].append(loss)
        if time.monotonic() - self._last > REPORT_S:
            means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in sorted(self._losses.items()))
            print(f"{self._label} step {schedule.step}, {schedule.elapsed_s:.0f} s: {means}", flush=True)
            self._losses.clear()
            self._last = time.monotonic()


def fit(
    label: str,
    steps: dict[str, Step],
    mix: dict[str, float],
    schedule: Schedule,
) -> Iterable[int]:
    """Train for some minutes on a random mix of steps; yields the step number after each."""
    optimiser, progress = schedule.optimiser, Progress(label)
    generator = np.random.default_rng([3, schedule.step])
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    while schedule.advance():
        kind = str(generator.choice(list(mix), p=list(mix.values())))
        loss = steps[kind]()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        progress.add(kind, loss.item(), schedule)
        yield schedule.step
    print(f"{label}: {schedule.step} steps in {schedule.elapsed_s:.0f} s", flush=True)


def make_steps(losses: BatchLosses, roles: tuple[str, ...]) -> dict[str, Step]:
    """Return the five kinds of step that base and adapters share."""
    return {
        "distil": losses.distil(roles),
        "everyday": losses.distil(roles, losses.everyday),
        "retrieval": losses.answer(PairKind.RETRIEVAL),
        "code": losses.answer(PairKind.CODE),
        "translate": losses.translate(),
    }


def train_base(work: Path, losses: BatchLosses, minutes: float, first: Embedder | None) -> None:
    """Train all weights but the projector's; the state in WORK/state.pt is resumed if it is there."""
    model, mix = losses.model, dict(BASE_MIX)
    steps = make_steps(losses, ("query", "passage"))
    if first is None:
        mix["distil"] += mix.pop("keep")
    else:
        steps["keep"] = losses.keep(first)
    optimiser = base_optimiser(model)
    schedule = resume(work, model, optimiser, minutes)
    saved = time.monotonic()
    for _ in fit("base", steps, mix, schedule):
        if time.monotonic() - saved > SAVE_S:
            save_state(work, model, schedule)
            saved = time.monotonic()
    save_state(work, model, schedule)


def base_optimiser(model: Embedder) -> torch.optim.Optimizer:
    """Return AdamW over three groups: embeddings, matrices, and vectors."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.model.named_parameters():
        groups["embedding" if "embed" in name else "matrix" if parameter.dim() > 1 else "vector"].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["embedding"], "lr": BASE_RATE / 2, "weight_decay": 0.0},
            {"params": groups["vector"], "lr": BASE_RATE, "weight_decay": 0.0},
            {"params": groups["matrix"], "lr": BASE_RATE, "weight_decay": 0.01},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


def resume(work: Path, model: Embedder, optimiser: torch.optim.Optimizer, minutes: float) -> Schedule:
    """Load WORK/state.pt into the model and the optimiser, if it is there."""
    if not (work / "state.pt").exists():
        return Schedule(optimiser, minutes)
    state = torch.load(work / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    print(f"base resumes at step {state['step']}, {state['elapsed_s']:.0f} s", flush=True)
    return Schedule(optimiser, minutes, step=state["step"], elapsed_s=state["elapsed_s"])


def save_state(work: Path, model: Embedder, schedule: Schedule) -> None:
    """Write WORK/state.pt, to resume from, and WORK/base.safetensors."""
    state = {"model": model.state_dict(), "optimiser": schedule.optimiser.state_dict()}
    torch.save(state | {"step": schedule.step, "elapsed_s": schedule.elapsed_s}, work / "state.new")
    (work / "state.new").replace(work / "state.pt")
    save_base(work, model)


def train_adapter(work: Path, losses: BatchLosses, task: str, start: dict[str, Tensor], minutes: float) -> None:
    """Train one task's adapter, except its part for the projector."""
    roles = ("query",) if task == "text-matching" else ("query", "passage")
    adapter = {name: tensor.clone().requires_grad_(not name.startswith(PROJECTOR)) for name, tensor in start.items()}
    losses.model.set_adapter(adapter)
    steps = make_steps(losses, roles)
    trained = [tensor for tensor in adapter.values() if tensor.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=ADAPTER_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in fit(task, steps, ADAPTER_MIX[task], Schedule(optimiser, minutes)):
        pass
    save_adapter(work, task, adapter)


def train_projector(work: Path, losses: BatchLosses, minutes: float) -> None:
    """Train the projector and its adapter parts with MaxSim; single vectors do not change."""
    model = losses.model
    adapters = {task: load_file(work / f"adapter-{task}.safetensors") for task in TASKS}
    own = [tensor for adapter in adapters.values() for name, tensor in adapter.items() if name.startswith(PROJECTOR)]
    trained = [tensor.requires_grad_() for tensor in (*own, *model.multi_vector_projector.parameters())]
    kinds = {"retrieval": losses.answer(PairKind.RETRIEVAL), "code": losses.answer(PairKind.CODE)}
    kinds["translate"] = losses.translate()

    def for_task(task: str) -> Step:
        def step() -> Tensor:
            model.set_adapter(adapters[task])
            return kinds[PROJECTOR_MIX[task]]()

        return step

    optimiser = torch.optim.Adam(trained, lr=PROJECTOR_RATE, betas=(0.9, 0.98))
    mix = {"retrieval": 0.5, "text-matching": 0.25, "code": 0.25}
    for _ in fit("projector", {task: for_task(task) for task in TASKS}, mix, Schedule(optimiser, minutes)):
        pass
    save_base(work, model)
    for task, adapter in adapters.items():
        save_adapter(work, task, adapter)


def save_base(work: Path, model: Embedder) -> None:
    """Write WORK/base.safetensors."""
    save_file({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, work / "base.safetensors")


def save_adapter(work: Path, task: str, adapter: dict[str, Tensor]) -> None:
    """Write WORK/adapter-TASK.safetensors."""
    plain = {name: tensor.detach().clone() for name, tensor in adapter.items()}
    save_file(plain, work / f"adapter-{task}.safetensors")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("stage", choices=("base", "adapters", "projector"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--start", type=Path, help="the checkpoint whose base or adapters are trained further")
    parser.add_argument("--keep", type=Path, help="for base: a checkpoint whose vectors of translations are kept near")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json that the tokens came from, without --start")
    parser.add_argument("--minutes", type=float, required=True, help="a stage's length; for adapters, each one's")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="for adapters: these alone")
    parser.add_argument("--bf16", action="store_true", help="compute the tower in bfloat16, where the processor can")
    parser.add_argument("--compile", action="store_true", help="for base: compile the tower: a third faster")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Run one stage."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.tokenizer or options.start / "tokenizer.json"))
    model = Embedder()
    fresh = options.stage == "base" and options.start is not None
    model.load_state_dict(read_base(options.start) if fresh else load_file(options.work / "base.safetensors"))
    model.requires_grad_(options.stage == "base")
    seed = {"base": 0, "adapters": 1, "projector": 2}[options.stage]
    losses = BatchLosses(options.work, tokenizer, model, seed=seed, late=options.stage == "projector")
    losses.bf16 = options.bf16
    if options.compile:
        losses.hidden = torch.compile(model.hidden, dynamic=True)
    if options.stage == "base":
        first = load_model(options.keep) if options.keep else None
        train_base(options.work, losses, options.minutes, first)
    elif options.stage == "projector":
        train_projector(options.work, losses, options.minutes)
    else:
        adapters = read_adapters(options.start) if options.start else {t: model.new_adapter(7) for t in TASKS}
        for task in options.tasks:
            train_adapter(options.work, losses, task, adapters[task], options.minutes)


if __name__ == "__main__":
    main()
