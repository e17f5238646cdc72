"""Choose and load an engine by name; the heavy packages are imported only here, when they are wanted.

An engine that was asked for by name is never replaced by another. What `auto` took and why is the engine's `reason`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Self

from nestling._util.cpu import usable_threads
from nestling._util.numbers import whole_number
from nestling.engine.lora import Adapter
from nestling.engine.protocol import Engine, Profiled
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling

LOG = logging.getLogger("nestling.engine")
FASTEST = "auto: the fastest engine on this processor"
MAX_REASON = 400
"""Characters of OpenVINO's own words in a message."""


class _Failed(EngineError):
    """OpenVINO has no processor that it runs on, or failed on this file."""


class EngineName(StrEnum):
    """The engines; `auto` is the fastest one that this machine can run."""

    AUTO = "auto"
    OPENVINO = "openvino"
    LLAMACPP = "llamacpp"
    REFERENCE = "reference"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an engine's name."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"engine={text!r}: expected one of {', '.join(cls)}", param="engine") from None


def load_engine(
    file: GGUFFile,
    *,
    name: EngineName,
    threads: int | None = None,
    pooling: Pooling = Pooling.MEAN,
    adapters: Sequence[Adapter] = (),
    profile: bool = False,
) -> Engine:
    """Load a file into an engine, with so many threads (all usable processors by default).

    A base is loaded with its `adapters`, which its items name by their place. UsageError for a `profile` that this
    engine does not keep.
    """
    wanted = _Wanted(file, _threads(threads), pooling, adapters, profile=profile)
    engine = _LOADERS[name](wanted)
    if profile and not isinstance(engine, Profiled):
        engine.close()
        raise UsageError(f"profile: known of the openvino engine, not of {engine.name}", param="profile")
    return engine


def _threads(wanted: int | None) -> int:
    return usable_threads() if wanted is None else whole_number(wanted, param="threads")


@dataclass(frozen=True, slots=True)
class _Wanted:
    file: GGUFFile
    threads: int
    pooling: Pooling
    adapters: Sequence[Adapter] = ()
    profile: bool = False


def _openvino(wanted: _Wanted) -> Engine:
    try:
        from nestling.engine.openvino.engine import OpenVINOEngine

        return OpenVINOEngine(
            wanted.file,
            threads=wanted.threads,
            pooling=wanted.pooling,
            adapters=wanted.adapters,
            profile=wanted.profile,
        )
    except ImportError as error:
        raise _Failed(f"openvino is not installed ({error})") from error
    except RuntimeError as error:  # what OpenVINO raises, on many lines
        raise _Failed(f"{wanted.file.path}: openvino failed: {' '.join(str(error).split())[:MAX_REASON]}") from error


def _llamacpp(wanted: _Wanted) -> Engine:
    try:
        from nestling.engine.llamacpp import LlamaCppEngine
    except ImportError as error:
        raise EngineError(f"xllamacpp is not installed ({error})") from error
    return LlamaCppEngine(wanted.file, threads=wanted.threads, pooling=wanted.pooling, adapters=wanted.adapters)


def _reference(wanted: _Wanted) -> Engine:
    from nestling.engine.numpy_reference import ReferenceEngine

    return ReferenceEngine(wanted.file, pooling=wanted.pooling, adapters=wanted.adapters)


def _auto(wanted: _Wanted) -> Engine:
    """OpenVINO, or where it cannot be loaded llama.cpp, which the log and the engine's `reason` say."""
    try:
        engine, reason = _openvino(wanted), FASTEST
    except _Failed as failed:
        try:
            engine, reason = _llamacpp(wanted), f"auto: openvino cannot be loaded: {failed}"
        except EngineError as error:
            raise EngineError(f"{wanted.file.path}: no engine loads it: {failed}; {error}") from error
        _warn_once(f"engine llamacpp, which is slower, in place of openvino: {failed}")
    engine.reason = reason
    return engine


def preferred() -> tuple[EngineName, str]:
    """The engine that `auto` takes for a sound file here, and why; no model is loaded."""
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
    EngineName.REFERENCE: _reference,
}
