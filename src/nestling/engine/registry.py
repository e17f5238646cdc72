"""Choose and load an engine by name; the heavy packages are imported only here, when they are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from nestling._util.cpu import usable_threads
from nestling._util.numbers import whole_number
from nestling.engine.lora import Adapter
from nestling.engine.protocol import Engine, Profiled
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling


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
    from nestling.engine.openvino.engine import OpenVINOEngine

    return OpenVINOEngine(
        wanted.file,
        threads=wanted.threads,
        pooling=wanted.pooling,
        adapters=wanted.adapters,
        profile=wanted.profile,
    )


def _llamacpp(wanted: _Wanted) -> Engine:
    from nestling.engine.llamacpp import LlamaCppEngine

    return LlamaCppEngine(wanted.file, threads=wanted.threads, pooling=wanted.pooling, adapters=wanted.adapters)


def _reference(wanted: _Wanted) -> Engine:
    from nestling.engine.numpy_reference import ReferenceEngine

    return ReferenceEngine(wanted.file, pooling=wanted.pooling, adapters=wanted.adapters)


def _auto(wanted: _Wanted) -> Engine:
    """OpenVINO, or llama.cpp where OpenVINO has no processor it can run on."""
    try:
        return _openvino(wanted)
    except (ImportError, RuntimeError) as reason:
        try:
            return _llamacpp(wanted)
        except ImportError:
            raise EngineError(
                f"{wanted.file.path}: neither openvino ({reason}) nor xllamacpp can be loaded"
            ) from reason


_LOADERS: dict[EngineName, Callable[[_Wanted], Engine]] = {
    EngineName.AUTO: _auto,
    EngineName.OPENVINO: _openvino,
    EngineName.LLAMACPP: _llamacpp,
    EngineName.REFERENCE: _reference,
}
