"""A task's multi-vector head out of a checkpoint into a file of its own: the projector, its adapter merged, in float32.

It is small (a MiB for the full model), so it is never quantized; every file type of the task's model shares it. See
`projector` for what is done with it.
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

    A checkpoint whose projector is missing or unfit is a CheckpointError naming the tensor.
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
