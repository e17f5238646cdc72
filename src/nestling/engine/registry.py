"""Choose and load an engine by name; the heavy packages are imported only here, when they are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from nestling._util.cpu import usable_threads
from nestling._util.numbers import whole_number
from nestling.engine.adapted import OneAdapter
from nestling.engine.lora import Adapter, beside
from nestling.engine.protocol import AdaptedEngine, Engine, Profiled
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.spec import BASE_FIELD, Pooling


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
            raise UsageError(f"engine={text!r}: this is one of {', '.join(cls)}", param="engine") from None


def load_engine(
    file: GGUFFile,
    *,
    name: EngineName,
    threads: int | None = None,
    pooling: Pooling = Pooling.MEAN,
    profile: bool = False,
) -> Engine:
    """Load the file into an engine with so many threads (all usable processors by default).

    A UsageError if a `profile` is wanted and this engine keeps none.
    """
    engine: Engine = _loaded(name, _Wanted(file, _threads(threads), pooling, profile=profile))
    return engine


def load_adapted(
    file: GGUFFile,
    adapters: Sequence[Adapter],
    *,
    name: EngineName,
    threads: int | None = None,
    pooling: Pooling = Pooling.MEAN,
    profile: bool = False,
) -> AdaptedEngine:
    """Load a base with adapters, which its texts name by their place; see `load_engine`."""
    engine: AdaptedEngine = _loaded(name, _Wanted(file, _threads(threads), pooling, adapters, profile=profile))
    return engine


def load_whole(
    file: GGUFFile, *, name: EngineName, threads: int | None = None, pooling: Pooling = Pooling.MEAN
) -> Engine:
    """As `load_engine`; a base, which is nothing by itself, comes with the first of the adapters beside it."""
    if BASE_FIELD not in file.metadata:
        return load_engine(file, name=name, threads=threads, pooling=pooling)
    return OneAdapter(load_adapted(file, beside(file), name=name, threads=threads, pooling=pooling), 0)


def _threads(wanted: int | None) -> int:
    return usable_threads() if wanted is None else whole_number(wanted, param="threads")


@dataclass(frozen=True, slots=True)
class _Wanted:
    file: GGUFFile
    threads: int
    pooling: Pooling
    adapters: Sequence[Adapter] = ()
    profile: bool = False


def _loaded(name: EngineName, wanted: _Wanted) -> Any:  # noqa: ANN401 - as its callers know
    engine = _LOADERS[name](wanted)
    if wanted.profile and not isinstance(engine, Profiled):
        engine.close()
        raise UsageError(f"profile: known of the openvino engine, not of {engine.name}", param="profile")
    return engine


def _openvino(wanted: _Wanted) -> Any:  # noqa: ANN401 - an Engine, an AdaptedEngine where there are adapters
    from nestling.engine.openvino.engine import OpenVINOEngine

    return OpenVINOEngine(
        wanted.file,
        threads=wanted.threads,
        pooling=wanted.pooling,
        adapters=wanted.adapters,
        profile=wanted.profile,
    )


def _llamacpp(wanted: _Wanted) -> Any:  # noqa: ANN401 - as above
    from nestling.engine.llamacpp import LlamaCppEngine

    return LlamaCppEngine(wanted.file, threads=wanted.threads, pooling=wanted.pooling, adapters=wanted.adapters)


def _reference(wanted: _Wanted) -> Any:  # noqa: ANN401 - as above
    from nestling.engine.numpy_reference import ReferenceEngine

    return ReferenceEngine(wanted.file, pooling=wanted.pooling, adapters=wanted.adapters)


def _auto(wanted: _Wanted) -> Any:  # noqa: ANN401 - as above
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


_LOADERS: dict[EngineName, Callable[[_Wanted], Any]] = {
    EngineName.AUTO: _auto,
    EngineName.OPENVINO: _openvino,
    EngineName.LLAMACPP: _llamacpp,
    EngineName.REFERENCE: _reference,
}
