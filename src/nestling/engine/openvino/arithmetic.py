"""What a file's matrix products are computed in: a weight format for each kind of matrix, and what goes between them.

Knows nothing of which is fastest where (`choice`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nestling.engine import rotation
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import LAYER_MATRICES, Hyperparameters
from nestling.engine.openvino.grouping import group_of, kind_of, matrices
from nestling.engine.openvino.weight_formats.base import WeightFormat
from nestling.engine.openvino.weight_formats.floats import FloatFormat
from nestling.engine.openvino.weight_formats.int8_groups import Int8Groups
from nestling.engine.openvino.weight_formats.int8_rows import Int8Rows
from nestling.engine.rotation import NORM_OF, Rotation
from nestling.formats.gguf import GGUFFile, TensorInfo
from nestling.formats.quant_types import QuantType

INNER = 64
"""Block of the rotation before `ffn_down`: each doubling doubles its time."""
LIMIT = 4.5
"""Largest number of a rotated row of mean square 1: one in 150,000 normal numbers is beyond and is cut there."""


@dataclass(frozen=True)
class Arithmetic:
    """`formats` hold the quantized matrices by kind; those stored as floats stay floats.

    `precision`: of everything between int8 products, and of products of floats. `group`: in which groups the plugin
    rounds activations; 0 for none.
    """

    name: ArithmeticName
    formats: dict[str, WeightFormat] = field(default_factory=dict)
    rotation: Rotation | None = None
    precision: str = "f32"
    group: int = 0

    @property
    def key(self) -> bytes:
        """What tells two arithmetics' weights apart."""
        held = "; ".join(f"{kind} {self.formats[kind].name}" for kind in LAYER_MATRICES if kind in self.formats)
        return f"{held}; {self.rotation}".encode()

    def format_of(self, infos: Sequence[TensorInfo]) -> WeightFormat:
        """How matrices that are stacked are held."""
        kinds = {info.kind for info in infos}
        rounded = self.formats.get(kind_of(infos[0].name))
        if rounded is None or all(kind.is_float for kind in kinds):
            return self.floats(kinds)
        return rounded

    def floats(self, kinds: set[QuantType]) -> WeightFormat:
        """How matrices are held that are not rounded to int8."""
        fits = self.name is ArithmeticName.BF16 or (kinds == {QuantType.F16} and self.rotation is None)
        return FloatFormat(QuantType.F16 if fits else QuantType.F32)

    def is_rounded(self, infos: Sequence[TensorInfo]) -> bool:
        """Whether these become int8."""
        return not isinstance(self.format_of(infos), FloatFormat)


def floats(name: ArithmeticName, precision: str) -> Arithmetic:
    """Products of floating-point numbers."""
    return Arithmetic(name, precision=precision)


def int8_groups(file: GGUFFile, precision: str) -> Arithmetic:
    """Weights and activations in groups; a matrix whose width does not divide into them stays floats."""
    group = group_of(file)
    widths = {kind_of(info.name): info.shape[-1] for info in matrices(file)}
    held: dict[str, WeightFormat] = {kind: Int8Groups(group) for kind, width in widths.items() if width % group == 0}
    return Arithmetic(ArithmeticName.INT8_GROUPS, held, precision=precision, group=group)


def int8_rows(file: GGUFFile, precision: str) -> Arithmetic:
    """Rotated, a scale for each row of activations and each of weights; for a model without `misfit`."""
    held: dict[str, WeightFormat] = dict.fromkeys(NORM_OF, Int8Rows(limit=LIMIT))
    held |= {"attn_output": Int8Rows(), "ffn_down": Int8Rows(block=INNER)}
    return Arithmetic(ArithmeticName.INT8_ROWS, held, Rotation.of(Hyperparameters.of(file)), precision)


def int8_mixed(file: GGUFFile, precision: str) -> Arithmetic:
    """Rows behind the norms, where they need no scale of their own, groups elsewhere; for a model without `misfit`."""
    rows, groups = int8_rows(file, precision), int8_groups(file, precision)
    held = groups.formats | {kind: rows.formats[kind] for kind in NORM_OF}
    return replace(rows, name=ArithmeticName.INT8_MIXED, formats=held, group=groups.group)


def misfit(file: GGUFFile) -> str | None:
    """Why a file cannot be in rows of int8; None if it can."""
    shape = Hyperparameters.of(file)
    if shape.feed_forward % INNER:
        return f"feed_forward_length {shape.feed_forward} is not a multiple of {INNER}"
    return rotation.misfit(shape)


MAKERS: Mapping[ArithmeticName, Callable[[GGUFFile, str], Arithmetic]] = {
    ArithmeticName.FLOAT32: lambda _, __: floats(ArithmeticName.FLOAT32, "f32"),
    ArithmeticName.BF16: lambda _, __: floats(ArithmeticName.BF16, "bf16"),
    ArithmeticName.INT8_GROUPS: int8_groups,
    ArithmeticName.INT8_ROWS: int8_rows,
    ArithmeticName.INT8_MIXED: int8_mixed,
}
"""Each arithmetic of a file, given the precision between int8 products."""
