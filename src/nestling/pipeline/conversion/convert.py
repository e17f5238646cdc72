"""A checkpoint and a task to a float GGUF file of architecture `qwen2vl`: names, hyperparameters, tokenizer, weights.

Deterministic: equal checkpoints give equal bytes. As in llama.cpp's converter, matrices get the file type while norms
and biases stay F32; key names are those of `llama-arch.cpp` and of the GGUF specification.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from nestling._util.progress import Progress, no_progress
from nestling._util.spelling import unknown
from nestling.formats.gguf import Field, TensorPlan, file_size, write_gguf
from nestling.formats.quant_types import FILE_TYPES, FLOAT_FILE_TYPES, QuantType
from nestling.pipeline.conversion.casts import cast_rows
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.config import TextConfig
from nestling.pipeline.conversion.merge import MergedTensor, ParameterCounts, task_model
from nestling.pipeline.conversion.tokenizer_fields import tokenizer_fields
from nestling.spec import BASE_FIELD, MAX_TOKENS, ModelSpec, Pooling, Task, checked_family, prefixes_for, stem_of

ARCHITECTURE = "qwen2vl"
DEFAULT_FILE_TYPE: Final = "F16"
_QUANTIZATION_VERSION = 2
_LICENCE_KEYS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """The written file, its hash and size, and parameter counts by part of the checkpoint."""

    path: Path
    sha256: str
    size_bytes: int
    counts: ParameterCounts


def convert(
    checkpoint: Checkpoint,
    *,
    task: Task | None,
    out: Path,
    family: str,
    file_type: str = DEFAULT_FILE_TYPE,
    progress: Progress = no_progress,
) -> ConvertReport:
    """Write one task's model to `out` as F32, F16 or BF16, streaming and atomically.

    Without a task it is the base, with no adapter merged; its field `nestling.base` names the checkpoint that its
    adapters belong to. `progress` counts bytes of tensors. Raises CheckpointError for an invalid checkpoint,
    BuildError for a weight that overflows the file type and for a full disk, UsageError for a quantized file type.
    """
    if file_type not in FLOAT_FILE_TYPES:
        raise unknown(file_type, FLOAT_FILE_TYPES, param="file_type")
    model = task_model(checkpoint, task)
    name = f"{checked_family(family)}-text-{stem_of(task)}"
    metadata = general_fields(checkpoint, name, file_type) | _hyperparameters(checkpoint.config)
    metadata |= tokenizer_fields(checkpoint.tokenizer_json, vocab_size=checkpoint.config.vocab)
    metadata |= _purpose(checkpoint, task, family)
    meter = Meter(progress)
    plans = [_plan(tensor, QuantType[file_type], meter) for tensor in model.tensors]
    meter.total = sum(plan.size_bytes for plan in plans)
    sha256 = write_gguf(out, metadata, plans)
    return ConvertReport(out, sha256, file_size(metadata, plans), model.counts)


class Meter:
    """Reports the bytes of all tensors together to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self.total = progress, 0, 0

    def watch(self, pieces: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Pass the pieces through and count their bytes."""
        for piece in pieces:
            yield piece
            self._done += piece.nbytes
            self._progress(self._done, self.total)


def _plan(merged: MergedTensor, wanted: QuantType, meter: Meter) -> TensorPlan:
    tensor = merged.tensor
    kind = wanted if len(tensor.shape) > 1 else QuantType.F32
    cast = partial(cast_rows, kind=kind, name=tensor.name)
    return TensorPlan(tensor.name, tensor.shape, kind, lambda: meter.watch(merged.pieces(cast)))


def _purpose(checkpoint: Checkpoint, task: Task | None, family: str) -> dict[str, Field]:
    if task is None:
        return {BASE_FIELD: Field.string(checkpoint.source)}
    return {"nestling.spec": Field.string(spec_for(checkpoint, task=task, family=family).to_json())}


def spec_for(checkpoint: Checkpoint, *, task: Task, family: str) -> ModelSpec:
    """The specification of a task's model, or of its adapter."""
    config = checkpoint.config
    return ModelSpec(
        family=family,
        task=task,
        dimensions=config.dimensions,
        max_tokens=min(config.max_positions, MAX_TOKENS),
        prefixes=prefixes_for(task),
        source=checkpoint.source,
    )


def general_fields(checkpoint: Checkpoint, name: str, file_type: str) -> dict[str, Field]:
    """The first fields of every file of a checkpoint, with its licence."""
    fields = {
        "general.architecture": Field.string(ARCHITECTURE),
        "general.type": Field.string("model"),
        "general.name": Field.string(name),
        "general.file_type": Field.uint32(FILE_TYPES[file_type]),
        "general.quantization_version": Field.uint32(_QUANTIZATION_VERSION),
    }
    fields |= {_LICENCE_KEYS[name]: Field.string(value) for name, value in checkpoint.licence().items()}
    if checkpoint.folder.repository:
        fields["general.source.huggingface.repository"] = Field.string(checkpoint.folder.repository)
    return fields


def _hyperparameters(config: TextConfig) -> dict[str, Field]:
    fields = {
        "context_length": Field.uint32(config.max_positions),
        "embedding_length": Field.uint32(config.hidden),
        "block_count": Field.uint32(config.layers),
        "feed_forward_length": Field.uint32(config.intermediate),
        "attention.head_count": Field.uint32(config.heads),
        "attention.head_count_kv": Field.uint32(config.kv_heads),
        "attention.layer_norm_rms_epsilon": Field.float32(config.rms_eps),
        "rope.freq_base": Field.float32(config.rope_theta),
        "rope.dimension_sections": Field.int32s((*config.mrope_sections, 0)),
        "pooling_type": Field.uint32(Pooling.MEAN.gguf_value),
    }
    return {f"{ARCHITECTURE}.{key}": field for key, field in fields.items()}
