"""From scratch only: train token embeddings as a bag of tokens, which costs minutes where the tower costs hours.

A text's vector is then the mean over its tokens of norm(embedding) * scale: what the tower computes while its layers
add nothing. From scratch all embeddings are trained. With --start only tokens are trained that occur almost only in
the given languages, for example Cyrillic ones: the other embeddings already work together with the layers.

Reads  WORK/rows.npz, WORK/targets.npz and, with --start, a checkpoint.
Writes WORK/base.safetensors.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from starter_recipe.batches import Rows, group_weights
from starter_recipe.checkpoint import read_base
from starter_recipe.losses import distillation
from starter_recipe.model import Embedder
from starter_recipe.tokens import PREFIXES

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 1024
SCRATCH_RATE = 2e-2
START_RATE = 8e-3
OWN_SHARE = 0.7
SEED = 0
_EMBEDDING, _SCALE = "model.embed_tokens.weight", "model.norm.weight"


def own_tokens(rows: Rows, languages: list[str], vocabulary: int) -> NDArray[np.bool_]:
    """Tell which tokens occur almost only in the given languages."""
    chosen = np.array([group.rsplit(" ", 1)[-1] in languages for group in rows.groups])[rows.group]
    inside = np.repeat(chosen, rows.tokens.lengths)
    own = np.bincount(rows.tokens.flat[inside], minlength=vocabulary)
    return own > OWN_SHARE * np.maximum(np.bincount(rows.tokens.flat, minlength=vocabulary), 1)


class Bag:
    """Bag-of-tokens vectors of rows, prefixes included."""

    def __init__(self, rows: Rows, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> None:
        self._rows = rows
        self._prefixes = [np.array(tokenizer.encode(prefix).ids) for prefix in PREFIXES.values()]
        self.embedding = weights[_EMBEDDING].clone().requires_grad_()
        self.scale = weights[_SCALE].clone().requires_grad_()

    def vectors(self, members: NDArray[np.int64], roles: NDArray[np.int64]) -> Tensor:
        """Return vectors of rows, each behind the prefix of its role: (B,) -> (B, 256)."""
        bags = [(self._prefixes[role], self._rows.tokens[row]) for row, role in zip(members, roles, strict=True)]
        sizes = [len(prefix) + len(tokens) for prefix, tokens in bags]
        flat = np.concatenate([part for bag in bags for part in bag]).astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        states = functional.rms_norm(self.embedding, (self.embedding.shape[1],), None, 1e-6) * self.scale
        return functional.embedding_bag(torch.from_numpy(flat), states, torch.from_numpy(starts), mode="mean")


def train(bag: Bag, rows: Rows, targets: Tensor, weights: NDArray[np.float64], options: argparse.Namespace) -> None:
    """Train for some minutes; only the tokens of --languages with --start."""
    frozen = None
    if options.start is not None:
        frozen = torch.from_numpy(~own_tokens(rows, options.languages, len(bag.embedding)))
        print(f"{int((~frozen).sum())} embeddings are trained")
    parameters = [{"params": [bag.embedding], "lr": SCRATCH_RATE if frozen is None else START_RATE}]
    if frozen is None:
        parameters.append({"params": [bag.scale], "lr": SCRATCH_RATE / 10})
    optimiser = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimiser.param_groups]
    generator, cumulative = np.random.default_rng(SEED), np.cumsum(weights)
    started, step = time.monotonic(), 0
    while (done := (time.monotonic() - started) / (60 * options.minutes)) < 1:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1.02 - done)
        members = np.searchsorted(cumulative, generator.random(BATCH)).clip(max=len(weights) - 1)
        vectors = bag.vectors(members, generator.integers(0, 2, BATCH))
        loss = distillation(vectors, targets[torch.from_numpy(rows.anchors[members])])
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if frozen is not None and bag.embedding.grad is not None:
            bag.embedding.grad[frozen] = 0.0
        optimiser.step()
        step += 1
        if step % 50 == 0:
            print(f"bag step {step}, {time.monotonic() - started:.0f} s: loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--start", type=Path, help="checkpoint to train further")
    parser.add_argument("--languages", nargs="+", default=["ru", "es"], help="with --start: whose tokens are trained")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the checkpoint")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    weights = Embedder().state_dict() if options.start is None else read_base(options.start)
    if options.start is None:
        torch.nn.init.normal_(weights[_EMBEDDING], std=0.5)
    rows = Rows.load(options.work / "rows.npz")
    with np.load(options.work / "targets.npz") as archive:
        targets, usable = torch.from_numpy(archive["targets"]), archive["usable"]
    allowed = usable[rows.anchors]
    if options.start is not None:
        languages = np.array([group.rsplit(" ", 1)[-1] in options.languages for group in rows.groups])
        allowed &= languages[rows.group]
    bag = Bag(rows, Tokenizer.from_file(str(options.tokenizer)), weights)
    train(bag, rows, targets, group_weights(rows.group, allowed), options)
    with torch.no_grad():
        weights[_EMBEDDING], weights[_SCALE] = bag.embedding.detach(), bag.scale.detach()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, options.work / "base.safetensors")


if __name__ == "__main__":
    main()
