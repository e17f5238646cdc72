"""Names of the arithmetics that matrix products can be computed in; what each is, every engine says for itself."""

from enum import StrEnum
from typing import Self

from nestling.errors import UsageError


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
        try:
            return cls(text)
        except ValueError:
            expected = f"expected one of {', '.join(cls)}"
            raise UsageError(f"arithmetic={text!r}: {expected}", param="arithmetic") from None
