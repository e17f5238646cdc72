"""Tensor types and file types of GGUF: names, numbers, sizes. Tables only; ggml does the quantizing.

Block sizes in weights and bytes are those of ggml's `ggml-common.h`; the numbers are `enum ggml_type` and
`enum llama_ftype`.
"""

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Self

from nestling._util.spelling import unknown


@dataclass(frozen=True, slots=True)
class _Layout:
    ggml_id: int
    block: int
    block_bytes: int
    needs_imatrix: bool = False


class QuantType(Enum):
    """A tensor type: `block` weights are stored in `block_bytes` bytes."""

    F32 = _Layout(0, 1, 4)
    F16 = _Layout(1, 1, 2)
    BF16 = _Layout(30, 1, 2)
    Q4_0 = _Layout(2, 32, 18)
    Q4_1 = _Layout(3, 32, 20)
    Q5_0 = _Layout(6, 32, 22)
    Q5_1 = _Layout(7, 32, 24)
    Q8_0 = _Layout(8, 32, 34)
    Q2_K = _Layout(10, 256, 84)
    Q3_K = _Layout(11, 256, 110)
    Q4_K = _Layout(12, 256, 144)
    Q5_K = _Layout(13, 256, 176)
    Q6_K = _Layout(14, 256, 210)
    IQ2_XXS = _Layout(16, 256, 66, needs_imatrix=True)
    IQ2_XS = _Layout(17, 256, 74, needs_imatrix=True)
    IQ3_XXS = _Layout(18, 256, 98)
    IQ1_S = _Layout(19, 256, 50, needs_imatrix=True)
    IQ4_NL = _Layout(20, 32, 18)
    IQ3_S = _Layout(21, 256, 110)
    IQ2_S = _Layout(22, 256, 82)
    IQ4_XS = _Layout(23, 256, 136)
    IQ1_M = _Layout(29, 256, 56, needs_imatrix=True)

    @property
    def ggml_id(self) -> int:
        """The number in `enum ggml_type`."""
        return self.value.ggml_id

    @property
    def block(self) -> int:
        """Weights in a block."""
        return self.value.block

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.value.block_bytes / self.value.block

    @property
    def needs_imatrix(self) -> bool:
        """True when ggml's quantizer requires an importance matrix."""
        return self.value.needs_imatrix

    @property
    def is_float(self) -> bool:
        """True for F32, F16 and BF16."""
        return self.block == 1

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights; `width` must be a multiple of `block`."""
        assert width % self.block == 0, f"{self.name}: a row of {width} is not a multiple of {self.block}"
        return width // self.block * self.value.block_bytes

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, its last axis the row."""
        return self.row_bytes(shape[-1]) * prod(shape[:-1])

    @classmethod
    def from_ggml_id(cls, number: int) -> Self | None:
        """The type with this number in `enum ggml_type`; None for an unsupported one."""
        return next((kind for kind in cls if kind.ggml_id == number), None)


FILE_TYPES: dict[str, int] = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14,
    "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26,
    "IQ3_XS": 22, "IQ3_XXS": 23, "Q2_K": 10, "Q2_K_S": 21, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19,
    "IQ1_M": 31, "IQ1_S": 24,
}  # fmt: skip
"""File type -> its number in `enum llama_ftype`, from the largest file to the smallest."""

FLOAT_FILE_TYPES = ("F32", "F16", "BF16")


def parse_file_type(text: str) -> str:
    """The canonical name of a file type, case-insensitive; UsageError for an unknown one."""
    name = text.upper()
    if name not in FILE_TYPES:
        raise unknown(text, FILE_TYPES, param="quant")
    return name
