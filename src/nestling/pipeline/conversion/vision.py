"""A checkpoint's vision tower to an mmproj file: llama.cpp's names, matrices in BF16, one file for all tasks.

Norms and biases stay F32. F16 is not offered: activations of the last block overflow it. The checkpoint's BF16 weights
are kept bit for bit. Streaming and deterministic. See `formats.mmproj` for the fields.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nestling._util.progress import Progress, no_progress
from nestling.errors import CheckpointError
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.mmproj import ARCHITECTURE, fields_of
from nestling.formats.quant_types import QuantType
from nestling.formats.safetensors import StoredTensor
from nestling.formats.tower_shape import CHANNELS, FRAMES, IMAGE_TOKEN, PROMPT, TowerShape
from nestling.pipeline.conversion.casts import cast_rows
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import Meter, general_fields
from nestling.pipeline.conversion.merge import VISION_PREFIX, row_ranges
from nestling.pipeline.conversion.tokenizer_fields import checkpoint_ids
from nestling.pipeline.conversion.vision_config import image_spec, tower_shape

KIND = QuantType.BF16


def write_tower(checkpoint: Checkpoint, *, out: Path, family: str, progress: Progress = no_progress) -> str:
    """Write the tower; returns the file's SHA-256 in hex.

    CheckpointError naming the file and the tensor or field for a missing or surplus tensor, a wrong shape, a weight
    that is not finite, or an unsupported setting. `progress` counts bytes of tensors.
    """
    shape = tower_shape(checkpoint)
    prompt, (token,) = (checkpoint_ids(checkpoint.tokenizer_json, text) for text in (PROMPT, IMAGE_TOKEN))
    spec = image_spec(checkpoint, family=family, prompt=prompt, image_token=token)
    metadata = general_fields(checkpoint, f"mmproj-{family}", KIND.name)
    metadata |= {"general.architecture": Field.string(ARCHITECTURE), "general.type": Field.string("mmproj")}
    meter = Meter(progress)
    plans = [part.plan(meter) for part in _parts(checkpoint, shape)]
    meter.total = sum(plan.size_bytes for plan in plans)
    return write_gguf(out, metadata | fields_of(shape, spec), plans)


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of the file: rows of a stored tensor from `first` on; for the patch embedding, one `frame` of it."""

    name: str
    stored: StoredTensor
    shape: tuple[int, ...]
    first: int
    frame: int | None

    def plan(self, meter: Meter) -> TensorPlan:
        kind = KIND if len(self.shape) > 1 else QuantType.F32
        return TensorPlan(self.name, self.shape, kind, lambda: meter.watch(self._pieces(kind)))

    def _pieces(self, kind: QuantType) -> Iterator[NDArray[Any]]:
        cast = partial(cast_rows, kind=kind, name=self.name)
        for start, stop in row_ranges(self.shape):
            rows = self.stored.read_rows(start=self.first + start, stop=self.first + stop)
            yield cast(rows if self.frame is None else rows[:, :, self.frame])


def _parts(checkpoint: Checkpoint, shape: TowerShape) -> list[_Part]:
    """Every tensor of the file in order, its source checked."""
    wanted = _sources(shape)
    stored = {name: _fitting(checkpoint, name, size) for name, size in wanted.items()}
    surplus = sorted(name for name in checkpoint.tensors.keys() - wanted.keys() if name.startswith(VISION_PREFIX))
    if surplus:
        found = checkpoint.tensors[surplus[0]]
        raise CheckpointError(f"{found.path}: {found.name}: not a tensor of this vision tower ({len(surplus)} such)")
    return [_part(name, size, stored) for name, size in shape.tensors().items()]


def _part(name: str, size: tuple[int, ...], stored: dict[str, StoredTensor]) -> _Part:
    source, third, frame = _source_of(name)
    return _Part(name, stored[source], size, third * size[0], frame)


def _source_of(name: str) -> tuple[str, int, int | None]:
    """The source of a tensor: its name in the checkpoint, which third of it (q, k, v), and which frame."""
    if name.startswith("v.patch_embd"):
        return f"{VISION_PREFIX}patch_embed.proj.weight", 0, int(name.endswith(".1"))
    if name in _ENDS:
        return VISION_PREFIX + _ENDS[name], 0, None
    block, part, side = name.removeprefix("v.blk.").split(".")
    third = "qkv".index(part[-1]) if part in ("attn_q", "attn_k", "attn_v") else 0
    return f"{VISION_PREFIX}blocks.{block}.{_IN_BLOCK[part]}.{side}", third, None


def _sources(shape: TowerShape) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors, with their expected shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for name, size in shape.tensors().items():
        source, third, frame = _source_of(name)
        if frame is not None:
            size = (shape.hidden, CHANNELS, FRAMES, shape.patch, shape.patch)
        found[source] = ((third + 1) * size[0], *size[1:])  # the last third is the largest
    return found


def _fitting(checkpoint: Checkpoint, name: str, size: tuple[int, ...]) -> StoredTensor:
    stored = checkpoint.tensors.get(name)
    if stored is None:
        raise CheckpointError(f"{checkpoint.folder.path}: the tensor {name} is missing")
    if stored.shape != size:
        raise CheckpointError(f"{stored.path}: {stored.name}: shape {stored.shape}: expected {size}, by config.json")
    return stored


_ENDS = {
    "v.post_ln.weight": "merger.ln_q.weight",
    **{f"mm.{place}.{side}": f"merger.mlp.{place}.{side}" for place in (0, 2) for side in ("weight", "bias")},
}
_IN_BLOCK = {
    "ln1": "norm1", "ln2": "norm2", "attn_q": "attn.qkv", "attn_k": "attn.qkv", "attn_v": "attn.qkv",
    "attn_out": "attn.proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
