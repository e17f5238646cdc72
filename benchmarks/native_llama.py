"""llama-cpp-python as a side of `cpu_speed`: runs in a separate environment, which need not have nestling.

    PYTHON benchmarks/native_llama.py FILE THREADS EXTRA

Reads a line of JSON, a list of lists of token ids; embeds them by mean pooling, as many texts a call as fit 512 tokens
(one text alone where it is longer); answers with a line, the seconds. With an empty list, answers with memory in bytes.
EXTRA is 1 for the weight layouts that llama.cpp makes at load (`use_extra_bufts`).
"""

import ctypes
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp as lc

CALL_TOKENS = 512
SEQUENCES = 64


def main(path: str, threads: int, *, extra: bool) -> None:
    """Load, say ready, answer until the input ends."""
    began = time.perf_counter()
    lc.llama_backend_init()
    wanted = lc.llama_model_default_params()
    wanted.use_extra_bufts = extra
    wanted.n_gpu_layers = 999  # all, in a build that has a GPU
    model = lc.llama_model_load_from_file(path.encode(), wanted)
    context = lc.llama_init_from_model(model, _params(threads))
    width = lc.llama_model_n_embd(model)
    print(json.dumps(time.perf_counter() - began), flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        if not texts:
            print(json.dumps(_memory()), flush=True)
            continue
        began = time.perf_counter()
        for group in _groups(texts):
            _embed(context, group, width)
        print(json.dumps(time.perf_counter() - began), flush=True)


def _params(threads: int) -> Any:  # noqa: ANN401 - a structure of llama.cpp
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CALL_TOKENS
    params.n_seq_max, params.kv_unified, params.flash_attn_type = SEQUENCES, True, 1
    params.n_threads = params.n_threads_batch = threads
    params.embeddings, params.pooling_type = True, lc.LLAMA_POOLING_TYPE_MEAN
    return params


def _groups(texts: list[list[int]]) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    tokens = 0
    for ids in sorted(texts, key=len, reverse=True):
        if group and (tokens + len(ids) > CALL_TOKENS or len(group) == SEQUENCES):
            yield group
            group, tokens = [], 0
        group.append(ids)
        tokens += len(ids)
    yield group


def _embed(context: Any, group: list[list[int]], width: int) -> None:  # noqa: ANN401 - a handle of llama.cpp
    lc.llama_memory_clear(lc.llama_get_memory(context), True)  # noqa: FBT003 - of C
    batch = lc.llama_batch_init(CALL_TOKENS, 0, 1)
    place = 0
    for sequence, ids in enumerate(group):
        for position, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, position, 1
            batch.seq_id[place][0], batch.logits[place] = sequence, 1
            place += 1
    batch.n_tokens = place
    if lc.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    found = [ctypes.cast(lc.llama_get_embeddings_seq(context, one), ctypes.c_void_p) for one in range(len(group))]
    lc.llama_batch_free(batch)
    if not all(one.value for one in found):
        sys.exit(f"no vector of {width}")


def _memory() -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), extra=sys.argv[3] == "1")
