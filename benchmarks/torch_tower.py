"""transformers' vision tower in torch as a side of `images`, run by an interpreter that has both, not nestling.

PYTHON benchmarks/torch_tower.py SHAPE THREADS bfloat16|float32

SHAPE is JSON, the fields of transformers' vision configuration; weights are random. Speaks as `our_tower` does.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel


def main(shape: str, threads: int, kind: str) -> None:
    """Make the tower, say how long it took, answer lists of grids with seconds, an empty one with memory in bytes."""
    torch.set_num_threads(threads)
    dtype, began = getattr(torch, kind), time.perf_counter()
    torch.set_default_dtype(dtype)
    model = Qwen2_5_VisionTransformerPretrainedModel._from_config(Qwen2_5_VLVisionConfig(**json.loads(shape)))
    model = model.to(dtype).eval()
    print(json.dumps(time.perf_counter() - began), flush=True)
    for line in sys.stdin:
        grids = json.loads(line)
        patches = torch.randn(sum(rows * columns for rows, columns in grids), 1176, dtype=dtype)
        began = time.perf_counter()
        if grids:
            with torch.inference_mode():
                model(patches, grid_thw=torch.tensor([[1, *grid] for grid in grids]))
        print(json.dumps(time.perf_counter() - began if grids else highest_memory()), flush=True)


def highest_memory() -> int:
    """Most resident bytes until now."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
