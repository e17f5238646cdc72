"""A task's multi-vector head as a separate file: the checkpoint's projector with its LoRA adapter merged, in float32.

It is small (1 MiB for the full model), so it is never quantized, and all file types of the task's model share it. See
`formats.multivector_head` for its use.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.multivector_head import ARCHITECTURE
from nestling.formats.quant_types import QuantType
from nestling.pipeline.conversion.casts import cast_rows
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import general_fields, spec_for
from nestling.pipeline.conversion.merge import MergedTensor, projector_tensors
from nestling.spec import Task

KIND = QuantType.F32


def write_projector(checkpoint: Checkpoint, *, task: Task, out: Path, family: str) -> str:
    """Write one task's head; returns the file's SHA-256 in hex.

    CheckpointError naming the tensor when the projector is missing or has a wrong shape.
    """
    tensors = projector_tensors(checkpoint, task)
    metadata = general_fields(checkpoint, f"{family}-text-{task.stem}-multivector", KIND.name)
    metadata |= {
        "general.architecture": Field.string(ARCHITECTURE),
        "general.type": Field.string("projector"),
        "nestling.spec": Field.string(spec_for(checkpoint, task=task, family=family).to_json()),
    }
    plans = [TensorPlan(one.tensor.name, one.tensor.shape, KIND, partial(_pieces, one)) for one in tensors]
    return write_gguf(out, metadata, plans)


def _pieces(merged: MergedTensor) -> Iterator[NDArray[Any]]:
    return merged.pieces(partial(cast_rows, kind=KIND, name=merged.tensor.name))
