"""Names of engines and devices. Loads no engine."""

import re
from collections.abc import Sequence
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
SEVERAL = "several devices are for `nestling serve` and `nestling bulk`"
_DEVICE_KINDS = ("cuda", "xpu", "mps", "cpu")
_DEVICE = re.compile(r"(cuda|xpu)(:(0|[1-9]\d{0,2}))?|mps|cpu")
_ON_CARDS = (EngineName.TORCH, EngineName.AUTO)


def parse_device(text: str) -> str:
    """Read a device's name. UsageError for anything but one of `DEVICES`."""
    if not _DEVICE.fullmatch(text):
        more = f"; {SEVERAL}" if "," in text else nearest(text, _DEVICE_KINDS)
        raise UsageError(f"device={text!r}: expected {DEVICES}{more}", param="device")
    return text


def parse_devices(text: str) -> tuple[str, ...]:
    """Read the names of devices that share work, separated by commas: numbered cards of one kind, or `cpu` repeated.

    UsageError for anything else.
    """
    found = tuple(text.split(","))
    if len(found) == 1:
        return (parse_device(text),)
    if problem := _why_not_together(found):
        raise UsageError(f"device={text!r}: {problem}", param="device")
    return found


def _why_not_together(devices: Sequence[str]) -> str | None:
    if not all(map(_DEVICE.fullmatch, devices)):
        return f"expected {DEVICES}, several separated by commas"
    kinds = list(dict.fromkeys(map(kind_of, devices)))
    if len(kinds) > 1:
        return f"expected devices of one kind, found {' and '.join(kinds)}, whose vectors differ"
    if kinds == ["cpu"]:
        return None
    if repeated := next((one for one in devices if devices.count(one) > 1), None):
        return f"{repeated} is named twice; expected different devices"
    return None if all(":" in one for one in devices) else f"expected numbered devices, as in {kinds[0]}:0,{kinds[0]}:1"


def kind_of(device: str) -> str:
    """A device's name without its number."""
    return device.partition(":")[0]


def takes_device(engine: EngineName, device: str) -> bool:
    """Whether an engine runs on a device: every one on the CPU, torch on cards."""
    return kind_of(device) == "cpu" or engine in _ON_CARDS


def check_device(engine: EngineName, device: str | None) -> None:
    """UsageError for a device that the engine does not run on; `device` may be several, separated by commas."""
    if device is not None and not all(takes_device(engine, one) for one in device.split(",")):
        raise UsageError(
            f"device={device!r}: the {engine} engine runs on the cpu; the torch engine has GPUs", param="device"
        )
