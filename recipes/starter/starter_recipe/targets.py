"""Step 6: turn 384-dimensional teacher vectors into 256-dimensional targets, most variance first.

From scratch the basis is the teacher's principal components. With --start the space of that checkpoint is kept: the
components are rotated (orthogonal Procrustes) onto the checkpoint's own vectors of English texts.

Reads  WORK/rows.npz, WORK/teacher*.npy and, with --start, a checkpoint.
Writes WORK/targets.npz: `targets` (anchors, 256), unit rows, `usable`, which of them are real, and `near`, the numbers
       of each anchor's nearest others by the teacher (-1: none), which training takes as hard negatives.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from starter_recipe.batches import Rows
from starter_recipe.checkpoint import load_model
from starter_recipe.model import MATRYOSHKA_DIMS, Embedder, pool
from starter_recipe.tokens import Collator

SAMPLE = 100_000
ALIGNED = 6_000
SEED = 2
NEAR = 12
BLOCK = 12_000
# nearer texts say the same: they are no negatives
SAME = 0.95
_BATCH = 64
_SLICE = 1024
Vectors = NDArray[np.float32]


def principal_components(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Return (mean (384,), basis (384, 256)) of teacher vectors, by falling variance."""
    mean: Vectors = vectors.mean(0)
    values, basis = np.linalg.eigh(np.cov((vectors - mean).T))
    order = np.argsort(values)[::-1][: MATRYOSHKA_DIMS[-1]]
    print(f"variance kept in {len(order)} dimensions: {values[order].sum() / values.sum():.3f}")
    return mean, basis[:, order].astype(np.float32)


def procrustes(source: Vectors, wanted: Vectors) -> Vectors:
    """Return the rotation that brings rows of `source` nearest to rows of `wanted`: (N, 256) twice -> (256, 256)."""
    left, _, right = np.linalg.svd(source.T @ wanted)
    rotation: Vectors = (left @ right).astype(np.float32)
    return rotation


def project(vectors: NDArray[Any], mean: Vectors, basis: Vectors) -> Vectors:
    """Return centred vectors in a basis: (N, 384), (384,), (384, 256) -> (N, 256)."""
    projected: Vectors = np.matmul(vectors.astype(np.float32) - mean, basis)
    return projected


def unit_rows(vectors: Vectors) -> Vectors:
    """Scale rows to unit length."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return scaled


@torch.inference_mode()
def embed_rows(model: Embedder, collate: Collator, rows: Rows, members: NDArray[np.int64]) -> Vectors:
    """Embed rows as queries, unit length: (N,) -> (N, 256)."""
    found = np.zeros((len(members), MATRYOSHKA_DIMS[-1]), np.float32)
    order = np.argsort(rows.tokens.lengths[members], kind="stable")
    for places in np.array_split(order, len(order) // _BATCH + 1):
        ids, mask = collate([rows.tokens[row] for row in members[places].tolist()], ["query"] * len(places))
        found[places] = pool(model.hidden(ids), mask).numpy()
    return unit_rows(found)


def alignment(source: Vectors, start: Path, rows: Rows, members: NDArray[np.int64]) -> Vectors:
    """Return the rotation of the components onto a checkpoint's vectors of the same texts."""
    collate = Collator(Tokenizer.from_file(str(start / "tokenizer.json")))
    wanted = embed_rows(load_model(start), collate, rows, members)
    rotation = procrustes(source, wanted)
    before, after = (float((vectors * wanted).sum(1).mean()) for vectors in (source, source @ rotation))
    print(f"cosine of targets and starting checkpoint: {before:.3f} unaligned, {after:.3f} aligned")
    return rotation


def make_targets(work: Path, start: Path | None) -> tuple[Vectors, NDArray[np.bool_]]:
    """Return (targets (anchors, 256), which anchors have one)."""
    vectors, usable = np.load(work / "teacher.npy", mmap_mode="r"), np.load(work / "teacher_done.npy")
    generator = np.random.default_rng(SEED)
    available = np.flatnonzero(usable)
    sample = np.sort(generator.permutation(available)[:SAMPLE])
    mean, basis = principal_components(np.asarray(vectors[sample], np.float32))
    if start is not None:
        rows = Rows.load(work / "rows.npz")
        members = np.unique(rows.english[(rows.english >= 0) & usable[rows.anchors]])
        members = np.sort(generator.permutation(members)[:ALIGNED])
        components = unit_rows(project(vectors[rows.anchors[members]], mean, basis))
        basis = np.matmul(basis, alignment(components, start, rows, members))
    targets = np.zeros((len(vectors), MATRYOSHKA_DIMS[-1]), np.float32)
    targets[available] = unit_rows(project(vectors[available], mean, basis))
    return targets, usable


def neighbours(targets: Vectors, available: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return each usable anchor's nearest others within its random block: (anchors, NEAR), -1 where there is none."""
    near = np.full((len(targets), NEAR), -1, np.int32)
    order = np.random.default_rng(SEED).permutation(available)
    for block in np.array_split(order, len(order) // BLOCK + 1):
        vectors = torch.from_numpy(targets[block])
        for start in range(0, len(block), _SLICE):
            scores = vectors[start : start + _SLICE] @ vectors.T
            scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))] = -1
            found = scores.masked_fill_(scores > SAME, -1).topk(min(NEAR, len(block) - 1)).indices.numpy()
            near[block[start : start + _SLICE], : found.shape[1]] = block[found]
    return near


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--start", type=Path, help="checkpoint to train further")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    targets, usable = make_targets(options.work, options.start)
    near = neighbours(targets, np.flatnonzero(usable))
    np.savez(options.work / "targets.npz", targets=targets, usable=usable, near=near)
    print(f"{usable.sum()} of {len(usable)} anchors have a target")


if __name__ == "__main__":
    main()
