"""Names of engines and devices. Loads no engine."""

import re
from enum import StrEnum
from typing import Final, Self

from nestling._util.spelling import member, nearest
from nestling.errors import UsageError


class EngineName(StrEnum):
    """The engines; `auto` is the fastest one that this machine can run."""

    AUTO = "auto"
    OPENVINO = "openvino"
    LLAMACPP = "llamacpp"
    TORCH = "torch"
    REFERENCE = "reference"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an engine's name. UsageError naming the known ones for any other."""
        return member(cls, text, param="engine")


DEFAULT_ENGINE: Final = EngineName.AUTO
DEVICES = "cuda[:N], xpu[:N], mps or cpu"
_DEVICE_KINDS = ("cuda", "xpu", "mps", "cpu")
_DEVICE = re.compile(r"(cuda|xpu)(:\d{1,3})?|mps|cpu")


def parse_device(text: str) -> str:
    """Read a device's name. UsageError for anything but `DEVICES`."""
    if not _DEVICE.fullmatch(text):
        raise UsageError(f"device={text!r}: expected {DEVICES}{nearest(text, _DEVICE_KINDS)}", param="device")
    return text
