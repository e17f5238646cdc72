"""Open an engine's device by name; a device that cannot be used is an error of one line."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType

import torch

from nestling.errors import EngineError

INSTALL = "docs/gpu.md says what to install"
BF16_SINCE = "bfloat16 needs an NVIDIA card of compute capability 8.0 (Ampere) or newer"
CARDS = ("cuda", "xpu", "mps")
"""Kinds of accelerators, in the order in which one is chosen when none is named."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A usable device, and the threads that dequantize weights (on a CPU also those that compute)."""

    device: torch.device
    threads: int

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU."""
        return bool(self.device.type == "cpu")

    @property
    def name(self) -> str:
        """The kind of card, equal for equal cards; a device's own name where there are none of a kind."""
        return str(torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device)

    def current(self) -> AbstractContextManager[object]:
        """Make this the thread's device inside the block: Triton launches kernels on that one, whatever the tensors."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def memory(self) -> tuple[int, int]:
        """Bytes on the device that this process has allocated now, and the most so far; zeros where unknown."""
        if self.device.type not in ("cuda", "xpu"):
            return 0, 0
        kind = _module(self.device.type)
        return kind.memory_allocated(self.device), kind.max_memory_allocated(self.device)

    def wait(self) -> None:
        """Wait until the device has finished all queued work."""
        if not self.is_cpu:
            _module(self.device.type).synchronize()

    def free_unused(self) -> None:
        """Return the memory that torch's allocator caches to the device."""
        if not self.is_cpu:
            _module(self.device.type).empty_cache()


def place(name: str | None, *, threads: int) -> Placement:
    """Open a device: `cuda[:N]`, `xpu[:N]`, `mps` or `cpu`; None is the first available kind of accelerator.

    EngineError, in one line, where there is no such device, its driver does not work, or it has no bfloat16.
    """
    found = torch.device(name or _any_card())
    if found.type == "cpu":
        torch.set_num_threads(threads)
        return Placement(found, threads)
    _check_there(found)
    _check_bf16(found)
    return Placement(found, threads)


def card_name(device: torch.device) -> str:
    """What kind of card a device is, as its driver says; its kind of device where there is no such name."""
    known = device.type == "cuda" and torch.cuda.is_available()
    return str(torch.cuda.get_device_name(device)) if known else str(device.type)


def has_card() -> bool:
    """Whether any accelerator can be used."""
    return any(_module(kind).is_available() for kind in CARDS)


def _any_card() -> str:
    found = next((kind for kind in CARDS if _module(kind).is_available()), None)
    if found is None:
        why = _why_not("cuda") or "torch finds none"
        raise EngineError(f"engine='torch': no GPU: {why}; {INSTALL}; device='cpu' runs it on the processor")
    return found


def _module(kind: str) -> ModuleType:
    module: ModuleType = getattr(torch, kind)
    return module


def _check_there(device: torch.device) -> None:
    module = _module(device.type)
    if not module.is_available():
        why = _why_not(device.type) or f"torch finds no {device.type} device"
        raise EngineError(f"device='{device}': {why}; {INSTALL}")
    count = module.device_count()
    if (device.index or 0) >= count:
        raise EngineError(f"device='{device}': expected one of {_listed(device.type, count)}")


def _listed(kind: str, count: int) -> str:
    return ", ".join(f"{kind}:{index}" for index in range(count))


def _why_not(kind: str) -> str:
    """The first line of torch's error on starting the driver: missing, too old, not compiled in."""
    start = getattr(_module(kind), "init", None)
    try:
        if start is not None:
            start()
    except (AssertionError, RuntimeError) as error:
        return first_line(error)
    return ""


def _check_bf16(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise EngineError(f"device='{device}': {name} has no bfloat16 arithmetic; {BF16_SINCE}")


def first_line(error: BaseException) -> str:
    """An error's message, its first line, without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")
