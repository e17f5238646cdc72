"""The arithmetic of a file's matrix products: a weight format per kind of matrix, and the precision between products.

Does not know which arithmetic is fastest on which processor (`choice`).
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
"""Clipping range of a rotated row of mean square 1: one in 150,000 normally distributed values is clipped."""


@dataclass(frozen=True)
class Arithmetic:
    """`formats`: of the quantized matrices, by kind of matrix; matrices stored as floats stay floats.

    `precision`: of the operations between int8 products, and of float products. `group`: size of the groups in which
    the plugin quantizes activations; 0 if it does not.
    """

    name: ArithmeticName
    formats: dict[str, WeightFormat] = field(default_factory=dict)
    rotation: Rotation | None = None
    precision: str = "f32"
    group: int = 0

    @property
    def key(self) -> bytes:
        """Part of the weight cache's key: differs between arithmetics whose converted weights differ."""
        held = "; ".join(f"{kind} {self.formats[kind].name}" for kind in LAYER_MATRICES if kind in self.formats)
        return f"{held}; {self.rotation}".encode()

    def format_of(self, infos: Sequence[TensorInfo]) -> WeightFormat:
        """The format of matrices that are stacked into one product."""
        kinds = {info.kind for info in infos}
        rounded = self.formats.get(kind_of(infos[0].name))
        if rounded is None or all(kind.is_float for kind in kinds):
            return self.floats(kinds)
        return rounded

    def floats(self, kinds: set[QuantType]) -> WeightFormat:
        """The format of matrices that are not quantized to int8."""
        fits = self.name is ArithmeticName.BF16 or (kinds == {QuantType.F16} and self.rotation is None)
        return FloatFormat(QuantType.F16 if fits else QuantType.F32)

    def is_rounded(self, infos: Sequence[TensorInfo]) -> bool:
        """Whether these matrices are quantized to int8."""
        return not isinstance(self.format_of(infos), FloatFormat)


def floats(name: ArithmeticName, precision: str) -> Arithmetic:
    """Products of floating-point numbers."""
    return Arithmetic(name, precision=precision)


def int8_groups(file: GGUFFile, precision: str) -> Arithmetic:
    """One scale per group of weights and activations; a matrix whose width is no multiple of the group stays float."""
    group = group_of(file)
    widths = {kind_of(info.name): info.shape[-1] for info in matrices(file)}
    held: dict[str, WeightFormat] = {kind: Int8Groups(group) for kind, width in widths.items() if width % group == 0}
    return Arithmetic(ArithmeticName.INT8_GROUPS, held, precision=precision, group=group)


def int8_rows(file: GGUFFile, precision: str) -> Arithmetic:
    """Rotated, with one scale per row of weights and of activations; for a model without `misfit`."""
    held: dict[str, WeightFormat] = dict.fromkeys(NORM_OF, Int8Rows(limit=LIMIT))
    held |= {"attn_output": Int8Rows(), "ffn_down": Int8Rows(block=INNER)}
    return Arithmetic(ArithmeticName.INT8_ROWS, held, Rotation.of(Hyperparameters.of(file)), precision)


def int8_mixed(file: GGUFFile, precision: str) -> Arithmetic:
    """Rows after norms, where a fixed range fits all activations, groups elsewhere; for a model without `misfit`."""
    rows, groups = int8_rows(file, precision), int8_groups(file, precision)
    held = groups.formats | {kind: rows.formats[kind] for kind in NORM_OF}
    return replace(rows, name=ArithmeticName.INT8_MIXED, formats=held, group=groups.group)


def misfit(file: GGUFFile) -> str | None:
    """Why a file cannot run in int8 rows; None if it can."""
    return rotation.misfit(Hyperparameters.of(file), inner=INNER)


MAKERS: Mapping[ArithmeticName, Callable[[GGUFFile, str], Arithmetic]] = {
    ArithmeticName.FLOAT32: lambda _, __: floats(ArithmeticName.FLOAT32, "f32"),
    ArithmeticName.BF16: lambda _, __: floats(ArithmeticName.BF16, "bf16"),
    ArithmeticName.INT8_GROUPS: int8_groups,
    ArithmeticName.INT8_ROWS: int8_rows,
    ArithmeticName.INT8_MIXED: int8_mixed,
}
"""Makes each arithmetic from a file and the precision between int8 products."""
