"""transformers' vision tower in torch as a side of `images`, run by an interpreter that has both, not nestling.

PYTHON -m benchmarks.torch_tower SHAPE THREADS bfloat16|float32

SHAPE is JSON, the fields of transformers' vision configuration; weights are random.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from benchmarks.tower_side import Grid, answer

PATCH_VALUES = 1176


def main(shape: str, threads: int, kind: str) -> None:
    """Answer with noise of the size of real patches."""
    torch.set_num_threads(threads)
    dtype = getattr(torch, kind)
    torch.set_default_dtype(dtype)

    def load() -> Callable[[Sequence[Grid]], Callable[[], object]]:
        model = Qwen2_5_VisionTransformerPretrainedModel._from_config(Qwen2_5_VLVisionConfig(**json.loads(shape)))
        return partial(prepare, model.to(dtype).eval())

    def prepare(model: Callable[..., object], grids: Sequence[Grid]) -> Callable[[], object]:
        patches = torch.randn(sum(rows * columns for rows, columns in grids), PATCH_VALUES, dtype=dtype)
        work = partial(model, patches, grid_thw=torch.tensor([[1, *grid] for grid in grids]))
        return partial(inferred, work)

    def inferred(work: Callable[[], object]) -> None:
        with torch.inference_mode():
            work()

    answer(load)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
