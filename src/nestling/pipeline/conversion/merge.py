"""One task's text model from a checkpoint: the task's LoRA adapter merged, vision and projector left out.

    merged = W + scaling * (B @ A)

in float32, a piece of rows at a time. B @ A is summed in float64 and rounded once, so that the result does not depend
on the order of additions in a machine's matrix product. A merge that changes no stored weight of a tensor is an error.
Of GGUF it knows only llama.cpp's tensor names (`qwen2vl` in llama-arch.cpp).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.errors import CheckpointError
from nestling.formats.safetensors import Floats, StoredTensor
from nestling.pipeline.conversion.checkpoint import Adapter, Checkpoint
from nestling.pipeline.conversion.config import TextConfig
from nestling.spec import Task

PIECE_BYTES = 16 << 20
PROJECTOR = "multi_vector_projector"
VISION_PREFIX = "visual."

Cast = Callable[[Floats], NDArray[Any]]
"""Casts float32 rows to the stored type."""


@dataclass(frozen=True, slots=True)
class TextTensor:
    """A tensor of the text model: `name` in the GGUF file, `source` in the checkpoint."""

    name: str
    source: str
    shape: tuple[int, ...]


def text_tensors(config: TextConfig) -> tuple[TextTensor, ...]:
    """Every tensor of the text model, in file order."""
    layers = [
        TextTensor(f"blk.{layer}.{name}", f"model.layers.{layer}.{source}", shape)
        for layer in range(config.layers)
        for name, source, shape in _layer_tensors(config)
    ]
    embedding = TextTensor("token_embd.weight", "model.embed_tokens.weight", (config.vocab, config.hidden))
    return embedding, *layers, TextTensor("output_norm.weight", "model.norm.weight", (config.hidden,))


def _layer_tensors(config: TextConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    hidden, inner, keys = config.hidden, config.intermediate, config.kv_heads * config.head_dim
    return [
        ("attn_norm.weight", "input_layernorm.weight", (hidden,)),
        ("attn_q.weight", "self_attn.q_proj.weight", (hidden, hidden)),
        ("attn_q.bias", "self_attn.q_proj.bias", (hidden,)),
        ("attn_k.weight", "self_attn.k_proj.weight", (keys, hidden)),
        ("attn_k.bias", "self_attn.k_proj.bias", (keys,)),
        ("attn_v.weight", "self_attn.v_proj.weight", (keys, hidden)),
        ("attn_v.bias", "self_attn.v_proj.bias", (keys,)),
        ("attn_output.weight", "self_attn.o_proj.weight", (hidden, hidden)),
        ("ffn_norm.weight", "post_attention_layernorm.weight", (hidden,)),
        ("ffn_gate.weight", "mlp.gate_proj.weight", (inner, hidden)),
        ("ffn_up.weight", "mlp.up_proj.weight", (inner, hidden)),
        ("ffn_down.weight", "mlp.down_proj.weight", (hidden, inner)),
    ]


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Weights of a checkpoint by part, and of the resulting text model; `base` is text and vision together."""

    base: int
    vision: int
    projector: int
    adapters: int
    result: int


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """A tensor of the task model, read in pieces; `adapter` is None for a tensor without LoRA."""

    tensor: TextTensor
    stored: StoredTensor
    adapter: Adapter | None
    scaling: float

    def pieces(self, cast: Cast) -> Iterator[NDArray[Any]]:
        """The merged and cast rows, in pieces of about 16 MiB of float32; CheckpointError if no row has changed."""
        if self.adapter is None:
            for start, stop in row_ranges(self.stored.shape):
                yield cast(self.stored.read_rows(start=start, stop=stop))
            return
        factor, moved = self.adapter.a.read_rows().astype(np.float64), False
        for start, stop in row_ranges(self.stored.shape):
            base = self.stored.read_rows(start=start, stop=stop)
            delta = (self.adapter.b.read_rows(start=start, stop=stop).astype(np.float64) @ factor).astype(np.float32)
            delta *= np.float32(self.scaling)
            delta += base
            merged = cast(delta)
            moved = moved or not np.array_equal(merged, cast(base))
            yield merged
        if not moved:
            raise CheckpointError(f"{self.adapter.b.path}: {self.adapter.b.name}: the merge changes no stored weight")


@dataclass(frozen=True, slots=True)
class TaskModel:
    """The text model of one task: its tensors in file order, and the parameter counts."""

    tensors: tuple[MergedTensor, ...]
    counts: ParameterCounts


def task_model(checkpoint: Checkpoint, task: Task | None) -> TaskModel:
    """Plan a task's model: check every tensor's name, shape and adapter without reading weights.

    Without a task no adapter is merged, which gives the base. CheckpointError naming a missing or surplus tensor, a
    wrong shape, or an adapter that does not cover the seven matrices of every layer.
    """
    wanted = text_tensors(checkpoint.config)
    adapters = _task_adapters(checkpoint, task, wanted) if task else {}
    _check_surplus(checkpoint, wanted)
    scaling = checkpoint.adapter_config.scaling
    tensors = tuple(
        MergedTensor(tensor, _fitting(checkpoint, tensor), adapters.get(tensor.source.removesuffix(".weight")), scaling)
        for tensor in wanted
    )
    return TaskModel(tensors, _counts(checkpoint, tensors))


def task_adapter(checkpoint: Checkpoint, task: Task) -> dict[str, Adapter]:
    """A task's LoRA adapter of every matrix, by the matrix's name in a GGUF file; checked as in `task_model`."""
    wanted = text_tensors(checkpoint.config)
    adapters = _task_adapters(checkpoint, task, wanted)
    return {
        tensor.name: adapters[module]
        for tensor in wanted
        if (module := tensor.source.removesuffix(".weight")) in adapters
    }


def projector_tensors(checkpoint: Checkpoint, task: Task) -> tuple[MergedTensor, MergedTensor]:
    """The multi-vector projector's merged weight and its bias; CheckpointError for wrong shapes."""
    adapter = _task_adapters(checkpoint, task, text_tensors(checkpoint.config))[PROJECTOR]
    weight, bias = f"{PROJECTOR}.weight", f"{PROJECTOR}.bias"
    width, scaling = checkpoint.tensors[weight].shape[0], checkpoint.adapter_config.scaling
    tensors = (
        TextTensor(weight, weight, (width, checkpoint.config.hidden)),
        TextTensor(bias, bias, (width,)),
    )
    return (
        MergedTensor(tensors[0], _fitting(checkpoint, tensors[0]), adapter, scaling),
        MergedTensor(tensors[1], _fitting(checkpoint, tensors[1]), None, scaling),
    )


def _task_adapters(checkpoint: Checkpoint, task: Task, wanted: tuple[TextTensor, ...]) -> dict[str, Adapter]:
    where, adapters = checkpoint.folder.path, checkpoint.adapters.get(task, {})
    if not adapters:
        raise CheckpointError(f"{where}: no adapter for {task}; it has {', '.join(checkpoint.adapters)}")
    matrices = {tensor.source for tensor in wanted if tensor.source.endswith("_proj.weight")}
    expected = {PROJECTOR} | {source.removesuffix(".weight") for source in matrices}
    if missing := sorted(expected - adapters.keys()):
        raise CheckpointError(f"{where}: the adapter for {task} lacks {missing[0]} ({len(missing)} missing)")
    if surplus := sorted(adapters.keys() - expected):
        raise CheckpointError(f"{where}: the adapter for {task} changes {surplus[0]}, which is not a layer's matrix")
    return adapters


def _check_surplus(checkpoint: Checkpoint, wanted: tuple[TextTensor, ...]) -> None:
    known = {tensor.source for tensor in wanted} | {f"{PROJECTOR}.weight", f"{PROJECTOR}.bias"}
    surplus = sorted(name for name in checkpoint.tensors.keys() - known if not name.startswith(VISION_PREFIX))
    if surplus:
        stored = checkpoint.tensors[surplus[0]]
        raise CheckpointError(f"{stored.path}: {stored.name}: not a tensor of this architecture ({len(surplus)} such)")


def _fitting(checkpoint: Checkpoint, tensor: TextTensor) -> StoredTensor:
    stored = checkpoint.tensors.get(tensor.source)
    if stored is None:
        raise CheckpointError(f"{checkpoint.folder.path}: the tensor {tensor.source} is missing")
    if stored.shape != tensor.shape:
        raise CheckpointError(
            f"{stored.path}: {stored.name}: shape {stored.shape}: expected {tensor.shape}, by config.json"
        )
    return stored


def _counts(checkpoint: Checkpoint, tensors: tuple[MergedTensor, ...]) -> ParameterCounts:
    by_part = {"vision": 0, "projector": 0, "text": 0}
    for name, stored in checkpoint.tensors.items():
        part = "vision" if name.startswith(VISION_PREFIX) else "projector" if name.startswith(PROJECTOR) else "text"
        by_part[part] += stored.parameters
    result = sum(prod(merged.tensor.shape) for merged in tensors)
    assert result == by_part["text"], "every text tensor is written once"
    return ParameterCounts(
        base=result + by_part["vision"],
        vision=by_part["vision"],
        projector=by_part["projector"],
        adapters=sum(adapter.parameters for task in checkpoint.adapters.values() for adapter in task.values()),
        result=result,
    )


def row_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of a tensor in pieces of about 16 MiB of float32."""
    step = max(1, PIECE_BYTES // (4 * prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
