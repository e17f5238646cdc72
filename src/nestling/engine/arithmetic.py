"""Names of the arithmetics (number formats) of matrix products; each engine defines which it has and what they are."""

from enum import StrEnum
from typing import Final, Self

from nestling._util.spelling import member


class ArithmeticName(StrEnum):
    """`auto` is the fastest that is exact enough for the file, as measured (docs/performance.md)."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16"
    INT8_GROUPS = "int8-groups"
    INT8_ROWS = "int8-rows"
    INT8_MIXED = "int8-mixed"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name. UsageError naming the known ones for any other."""
        return member(cls, text, param="arithmetic")


DEFAULT_ARITHMETIC: Final = ArithmeticName.AUTO
