"""The plan of a quantized file: every tensor's type, the exact size and the metadata, with all checks made first.

A dry run uses only this module. Does not quantize; see `quantize`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nestling._util.spelling import unknown
from nestling.errors import BuildError, UsageError
from nestling.formats.gguf import Field, GGUFFile, TensorHead, file_size
from nestling.formats.quant_types import FILE_TYPES, QuantType, parse_file_type
from nestling.pipeline.quantization.file_types import Part, demands_imatrix, is_quantizable, tensor_types
from nestling.pipeline.quantization.imatrix import ImportanceMatrix

QUANTIZATION_VERSION = 2
"""ggml's GGML_QNT_VERSION, the version of the block layouts."""

TensorType = tuple[str, QuantType]
"""A regular expression, and the type of the tensors whose names contain a match."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The tensor types of a quantized file: those of a file type, with exceptions.

    The first matching entry of `tensor_types` decides; `token_embedding_type` takes precedence over them.
    """

    file_type: str
    tensor_types: tuple[TensorType, ...] = ()
    token_embedding_type: QuantType | None = None
    imatrix: ImportanceMatrix | None = None
    allow_requantize: bool = False


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """The planned file: its tensors in order, its metadata, its exact size."""

    mix: Mix
    tensors: tuple[TensorHead, ...]
    metadata: Mapping[str, Field]

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return file_size(self.metadata, self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over all tensors, without header and padding."""
        weights = sum(QuantType.F32.size_bytes(tensor.shape) // 4 for tensor in self.tensors)
        return 8 * sum(tensor.size_bytes for tensor in self.tensors) / weights


def parse_tensor_type(text: str) -> TensorType:
    """Parse `PATTERN=TYPE`; UsageError for anything else."""
    pattern, found, name = text.rpartition("=")
    if not found or not pattern:
        raise UsageError(f"tensor_type={text!r}: expected PATTERN=TYPE, such as ffn_down=Q6_K", param="tensor_type")
    return pattern, parse_quant_type(name, param="tensor_type")


def parse_quant_type(text: str, *, param: str) -> QuantType:
    """The tensor type of a name, case-insensitive; UsageError about `param` for an unknown one."""
    kind = QuantType.__members__.get(text.upper())
    if kind is None:
        raise unknown(text, QuantType.__members__, param=param)
    return kind


def plan(source: GGUFFile, mix: Mix) -> QuantizePlan:
    """Decide every tensor's type and check that the file can be made; else BuildError or UsageError."""
    mix = replace(mix, file_type=parse_file_type(mix.file_type))
    shapes = {name: info.shape for name, info in source.tensors.items()}
    if mix.imatrix is not None:
        mix.imatrix.check_covers(shapes)
    kinds = _stock_types(source, mix, shapes) | _exceptions(mix, shapes)
    _check_source(source, mix, kinds)
    _check_imatrix(mix, kinds)
    heads = tuple(TensorHead(name, shape, kinds[name]) for name, shape in shapes.items())
    return QuantizePlan(mix, heads, _metadata(source, mix))


def plan_file(source: Path, mix: Mix) -> QuantizePlan:
    """`plan` for the path of a source: a dry run."""
    return plan(GGUFFile.open(source), mix)


def _stock_types(source: GGUFFile, mix: Mix, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, QuantType]:
    arch = source.value("general.architecture")
    heads, kv_heads = (source.value(f"{arch}.attention.head_count{suffix}") for suffix in ("", "_kv"))
    if not all(isinstance(count, int) and count > 0 for count in (heads, kv_heads)):
        raise BuildError(f"{source.path}: {heads!r} heads and {kv_heads!r} key-value heads: expected integers")
    return tensor_types(
        shapes,
        file_type=mix.file_type,
        heads=heads,
        kv_heads=kv_heads,
        has_imatrix=mix.imatrix is not None,
    )


def _exceptions(mix: Mix, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, QuantType]:
    """The tensors whose type the caller has set."""
    matrices = {name: shape for name, shape in shapes.items() if is_quantizable(name, shape)}
    chosen: dict[str, QuantType] = {}
    for pattern, kind in mix.tensor_types:
        matching = [name for name in matrices if _compiled(pattern).search(name)]
        if not matching:
            raise UsageError(
                f"tensor_type={pattern!r}: expected a match in one of {_examples(matrices)}", param="tensor_type"
            )
        chosen = {name: kind for name in matching} | chosen
    if mix.token_embedding_type is not None:
        chosen[Part.EMBEDDING.value] = mix.token_embedding_type
    for name, kind in chosen.items():
        _check_width(name, shapes, kind)
    return chosen


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        message = (
            f"tensor_type={pattern!r}: not a regular expression ({error}); expected one such as ffn_down or blk\\.0\\."
        )
        raise UsageError(message, param="tensor_type") from error


def _examples(names: Mapping[str, object]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + f" and {len(names) - len(shown)} more"


def _check_width(name: str, shapes: Mapping[str, tuple[int, ...]], kind: QuantType) -> None:
    if name not in shapes:
        raise UsageError(
            f"token_embedding_type={kind.name}: the model has no tensor {name}", param="token_embedding_type"
        )
    if shapes[name][-1] % kind.block:
        raise UsageError(f"{name}: rows of {shapes[name][-1]} do not divide into {kind.name} blocks of {kind.block}")


def _check_source(source: GGUFFile, mix: Mix, kinds: Mapping[str, QuantType]) -> None:
    for name, info in source.tensors.items():
        if not (info.kind.is_float or info.kind is kinds[name] or mix.allow_requantize):
            raise BuildError(
                f"{source.path}: {name} is already {info.kind.name}; quantize the F32, F16 or BF16 file instead, or"
                " set allow_requantize, which loses quality"
            )


def _check_imatrix(mix: Mix, kinds: Mapping[str, QuantType]) -> None:
    covered = () if mix.imatrix is None else mix.imatrix.entries
    for name, kind in kinds.items():
        if name not in covered and demands_imatrix(name, kind, mix.file_type):
            raise BuildError(
                f"{name}: {kind.name} in a {mix.file_type} file needs an importance matrix for this tensor;"
                " give one that covers it, or choose a larger type"
            )


def _metadata(source: GGUFFile, mix: Mix) -> dict[str, Field]:
    """The source's fields, then those that llama-quantize sets, in its order."""
    kept = {key: field for key, field in source.metadata.items() if not key.startswith("quantize.imatrix.")}
    for key, value in (
        ("general.quantization_version", QUANTIZATION_VERSION),
        ("general.file_type", FILE_TYPES[mix.file_type]),
    ):
        kept.pop(key, None)
        kept[key] = Field.uint32(value)
    kept.pop("general.alignment", None)  # the writer uses the format's default
    return kept | (_imatrix_metadata(mix.imatrix) if mix.imatrix else {})


def _imatrix_metadata(matrix: ImportanceMatrix) -> dict[str, Field]:
    """The matrix's fields as llama-quantize writes them, but with its file name instead of its path."""
    fields = {
        "quantize.imatrix.file": Field.string(matrix.file_name),
        "quantize.imatrix.dataset": Field.string(matrix.datasets[0] if matrix.datasets else ""),
        "quantize.imatrix.entries_count": Field.uint32(len(matrix.entries)),
        "quantize.imatrix.chunks_count": Field.uint32(matrix.chunk_count),
    }
    return {key: field for key, field in fields.items() if field.value}
