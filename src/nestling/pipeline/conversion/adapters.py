"""One task's LoRA adapter as a separate file, for use with the base model: GGUF in llama.cpp's LoRA format.

Every matrix of the text model has two F16 tensors, `<name>.lora_a` (rank, in) and `<name>.lora_b` (out, rank); the
fields are those of `llama-adapter.cpp`, which multiplies B @ A by alpha / rank. F16 represents the checkpoint's BF16
weights exactly, except those below 6e-5, whose error is at most 3e-8. The adapter of the multi-vector projector is left
out, because stock llama.cpp refuses tensors that the base lacks. `nestling.spec` holds the adapter's task, and its
`source` the checkpoint of its base.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nestling._util.progress import Progress, no_progress
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.formats.safetensors import StoredTensor
from nestling.pipeline.conversion.casts import cast_rows
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import ARCHITECTURE, general_fields, spec_for
from nestling.pipeline.conversion.merge import task_adapter
from nestling.spec import Task

KIND = QuantType.F16


def write_adapter(
    checkpoint: Checkpoint, *, task: Task, out: Path, family: str, progress: Progress = no_progress
) -> str:
    """Write one task's LoRA adapter; returns the file's SHA-256 in hex. Raises the errors of `convert`."""
    spec = spec_for(checkpoint, task=task, family=family)
    pairs = task_adapter(checkpoint, task)
    metadata = general_fields(checkpoint, f"{family}-adapter-{task.stem}", KIND.name)
    metadata |= {
        "general.architecture": Field.string(ARCHITECTURE),
        "general.type": Field.string("adapter"),
        "adapter.type": Field.string("lora"),
        "adapter.lora.alpha": Field.float32(checkpoint.adapter_config.alpha),
        "nestling.spec": Field.string(spec.to_json()),
    }
    sides = {f"{name}.lora_{side}": getattr(pair, side) for name, pair in pairs.items() for side in "ab"}
    total = sum(KIND.size_bytes(stored.shape) for stored in sides.values())
    meter = _Meter(progress, total)
    plans = [
        TensorPlan(name, stored.shape, KIND, partial(meter.pieces, name, stored)) for name, stored in sides.items()
    ]
    return write_gguf(out, metadata, plans)


class _Meter:
    """Reads tensors, each of a few MiB, and reports progress in bytes."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def pieces(self, name: str, stored: StoredTensor) -> Iterator[NDArray[Any]]:
        piece = cast_rows(stored.read_rows(), kind=KIND, name=name)
        yield piece
        self._done += piece.nbytes
        self._progress(self._done, self._total)
