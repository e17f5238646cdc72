"""Choose and load an engine by name; the heavy packages are imported here, on first use.

An engine asked for by name is never replaced by another. Which one `auto` chose and why is the engine's `reason`, and
is logged: as information, or as a warning where it is not the fastest one because that one cannot be loaded.
"""

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nestling._util.cpu import usable_threads
from nestling._util.extras import need
from nestling._util.numbers import whole_number
from nestling.engine import self_check
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.lora import Adapter
from nestling.engine.names import EngineName, check_device, parse_device
from nestling.engine.protocol import Engine, Profiled
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling

if TYPE_CHECKING:
    from nestling.engine.openvino.engine import OpenVINOEngine

LOG = logging.getLogger("nestling.engine")
FASTEST = "auto: the fastest engine on this processor"
GPU_FOUND = "auto: a GPU is there"
ASKED = "asked for by name"
SAFER = (ArithmeticName.INT8_GROUPS, ArithmeticName.FLOAT32)
"""Fallbacks of `auto` when the chosen arithmetic fails the self-check on this processor."""
MAX_REASON = 400
"""Most characters of OpenVINO's own error in a message."""


class _Failed(EngineError):
    """OpenVINO does not run on this processor, or failed to load this file (in `arithmetic`, if one was chosen)."""

    arithmetic: ArithmeticName | None = None


_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the NVIDIA, AMD and WSL drivers: without any of them torch, which is slow to import, is not tried."""


def load_engine(  # noqa: PLR0913 - each is one thing that an engine can be asked for
    file: GGUFFile,
    *,
    name: EngineName,
    device: str | None = None,
    threads: int | None = None,
    pooling: Pooling = Pooling.MEAN,
    adapters: Sequence[Adapter] = (),
    profile: bool = False,
    arithmetic: ArithmeticName = ArithmeticName.AUTO,
) -> Engine:
    """Load a model file into an engine.

    `device` is one of `DEVICES`: by default the first GPU for the torch engine and the CPU for the others; `auto`
    chooses torch when it is installed and finds a GPU. `threads`: all usable processors by default. `adapters`: the
    LoRA adapters of a base; an item selects one by its index. `profile`: measure the stages (openvino and torch).
    `arithmetic`: of the matrix products (openvino and torch).

    UsageError for a device, a `profile` or an arithmetic that the engine does not support, EngineError when the device
    or file cannot be used.
    """
    wanted = _Wanted(file, _device(device, name), _threads(threads), pooling, adapters, profile, arithmetic)
    engine = _LOADERS[name](wanted)
    if profile and not isinstance(engine, Profiled):
        engine.close()
        raise UsageError(f"profile: expected engine openvino or torch, not {engine.name}", param="profile")
    return engine


def _device(wanted: str | None, name: EngineName) -> str | None:
    if wanted is not None:
        check_device(name, parse_device(wanted))
    return wanted


def _threads(wanted: int | None) -> int:
    return usable_threads() if wanted is None else whole_number(wanted, param="threads")


@dataclass(frozen=True, slots=True)
class _Wanted:
    file: GGUFFile
    device: str | None
    threads: int
    pooling: Pooling
    adapters: Sequence[Adapter] = ()
    profile: bool = False
    arithmetic: ArithmeticName = ArithmeticName.AUTO

    def without_arithmetic(self, engine: EngineName) -> None:
        """UsageError for an arithmetic that was asked for by name."""
        if self.arithmetic is not ArithmeticName.AUTO:
            said = f"arithmetic='{self.arithmetic}': expected auto with the engine {engine}"
            raise UsageError(said, param="arithmetic")


def _openvino(wanted: _Wanted, why: str = ASKED) -> Engine:
    """OpenVINO in the arithmetic asked for; `auto`: in the chosen one or `SAFER`, the first that passes the self-check.

    Skipping one is logged as a warning.
    """
    failures: list[_Failed] = []
    for arithmetic in [wanted.arithmetic, *(SAFER if wanted.arithmetic is ArithmeticName.AUTO else ())]:
        if any(one.arithmetic is arithmetic for one in failures):
            continue
        try:
            engine = _right(wanted, arithmetic)
        except _Failed as failed:
            failures.append(failed)
            continue
        for passed_over in failures:
            _warn_once(f"{passed_over}; falling back to {engine.arithmetic}")
        engine.reason = f"{why}; {engine.reason}"
        return engine
    raise failures[0]


def _right(wanted: _Wanted, arithmetic: ArithmeticName) -> "OpenVINOEngine":
    """The engine in one arithmetic; _Failed where it does not compile or differs from the reference."""
    engine = _compiled(wanted, arithmetic)
    try:
        cosine = self_check.cosine(
            engine, wanted.file, adapters=wanted.adapters, threads=wanted.threads, kept=engine.record
        )
        if cosine >= self_check.NEAR:
            return engine
        said = f"openvino's self-check failed {engine.reason}: cosine {cosine:.3f} to the reference"
        failed = _Failed(f"{wanted.file.path}: {said}, expected at least {self_check.NEAR}")
    except RuntimeError as error:  # kernels are compiled on a shape's first run
        failed = _failed(wanted, error)
    engine.close()
    failed.arithmetic = engine.arithmetic
    raise failed


def _compiled(wanted: _Wanted, arithmetic: ArithmeticName) -> "OpenVINOEngine":
    try:
        from nestling.engine.openvino.engine import OpenVINOEngine

        return OpenVINOEngine(
            wanted.file,
            threads=wanted.threads,
            pooling=wanted.pooling,
            adapters=wanted.adapters,
            profile=wanted.profile,
            arithmetic=arithmetic,
        )
    except ImportError as error:
        raise _Failed(f"openvino is not installed ({error})") from error
    except RuntimeError as error:
        raise _failed(wanted, error) from error


def _failed(wanted: _Wanted, error: RuntimeError) -> _Failed:
    """OpenVINO's error of several lines as one line."""
    return _Failed(f"{wanted.file.path}: openvino failed: {' '.join(str(error).split())[:MAX_REASON]}")


def _llamacpp(wanted: _Wanted) -> Engine:
    wanted.without_arithmetic(EngineName.LLAMACPP)
    try:
        from nestling.engine.llamacpp import LlamaCppEngine
    except ImportError as error:
        raise EngineError(f"xllamacpp is not installed ({error})") from error
    return LlamaCppEngine(wanted.file, threads=wanted.threads, pooling=wanted.pooling, adapters=wanted.adapters)


def _torch(wanted: _Wanted, why: str = ASKED) -> Engine:
    engine = need("nestling.engine.torch.engine", wanted_for="engine='torch'", extra="gpu", param="engine")
    from nestling.engine.torch.devices import place

    made: Engine = engine.TorchEngine(
        wanted.file,
        on=place(wanted.device, threads=wanted.threads),
        pooling=wanted.pooling,
        adapters=wanted.adapters,
        profile=wanted.profile,
        arithmetic=wanted.arithmetic,
    )
    made.reason = f"{why}; {made.reason}"
    return made


def has_gpu() -> bool:
    """Whether torch is installed and finds a GPU of NVIDIA, AMD or Apple; an Intel GPU has to be named."""
    driver = any(Path(one).exists() for one in _DRIVERS) or platform.system() == "Darwin"
    if not driver or find_spec("torch") is None:
        return False
    from nestling.engine.torch.devices import has_card

    return has_card()


def _reference(wanted: _Wanted) -> Engine:
    from nestling.engine.numpy_reference import ReferenceEngine

    wanted.without_arithmetic(EngineName.REFERENCE)
    return ReferenceEngine(wanted.file, pooling=wanted.pooling, adapters=wanted.adapters)


def _auto(wanted: _Wanted) -> Engine:
    """Torch on a GPU that is named or found; else OpenVINO; else, when that cannot be loaded, llama.cpp."""
    if why := _gpu_wanted(wanted.device):
        engine = _torch(wanted, why)
    else:
        try:
            engine = _openvino(wanted, FASTEST)
        except _Failed as failed:
            if wanted.arithmetic is not ArithmeticName.AUTO:
                raise
            return _in_its_place(wanted, failed)
    LOG.info("engine %s (%s)", engine.name, engine.reason)
    return engine


def _in_its_place(wanted: _Wanted, failed: _Failed) -> Engine:
    """llama.cpp, with a warning; EngineError with both reasons where it cannot be loaded either."""
    try:
        engine = _llamacpp(wanted)
    except EngineError as error:
        raise EngineError(f"{wanted.file.path}: no engine loads it: {failed}; {error}") from error
    engine.reason = f"auto: openvino cannot be loaded: {failed}"
    _warn_once(f"engine llamacpp, which is slower, in place of openvino: {failed}")
    return engine


def _gpu_wanted(device: str | None) -> str | None:
    """Why `auto` chooses torch; None where it does not."""
    if device is not None:
        return None if device == "cpu" else f"auto: device={device}"
    return GPU_FOUND if has_gpu() else None


def preferred(device: str | None = None) -> tuple[EngineName, str]:
    """The engine that `auto` chooses for a valid file on this machine, and why; loads no model."""
    if why := _gpu_wanted(device):
        return EngineName.TORCH, why
    try:
        from nestling.engine.openvino.runtime import ov

        if "CPU" in ov.Core().available_devices:
            return EngineName.OPENVINO, FASTEST
        reason = "openvino does not run on this processor"
    except ImportError as error:
        reason = f"openvino is not installed ({error})"
    return EngineName.LLAMACPP, f"auto: openvino cannot be loaded: {reason}"


@cache
def _warn_once(text: str) -> None:
    LOG.warning(text)


_LOADERS: dict[EngineName, Callable[[_Wanted], Engine]] = {
    EngineName.AUTO: _auto,
    EngineName.OPENVINO: _openvino,
    EngineName.LLAMACPP: _llamacpp,
    EngineName.TORCH: _torch,
    EngineName.REFERENCE: _reference,
}
