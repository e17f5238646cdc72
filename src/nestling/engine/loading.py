"""Choose and load an engine by name; the heavy packages are imported only here, when they are wanted."""

import os
from collections.abc import Callable
from enum import StrEnum
from typing import Self

from nestling.engine.base import Engine
from nestling.errors import EngineError, UsageError
from nestling.gguf_io import GGUFFile
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
            raise UsageError(f"engine={text!r}: this is one of {', '.join(cls)}", param="engine") from None


def usable_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_engine(
    file: GGUFFile, *, name: EngineName, threads: int | None = None, pooling: Pooling = Pooling.MEAN
) -> Engine:
    """Load the file into an engine with so many threads (all usable processors by default)."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: at least 1", param="threads")
    return _LOADERS[name](file, threads or usable_threads(), pooling)


def _openvino(file: GGUFFile, threads: int, pooling: Pooling) -> Engine:
    from nestling.engine.openvino import OpenVINOEngine

    return OpenVINOEngine(file, threads=threads, pooling=pooling)


def _llamacpp(file: GGUFFile, threads: int, pooling: Pooling) -> Engine:
    from nestling.engine.llamacpp import LlamaCppEngine

    return LlamaCppEngine(file, threads=threads, pooling=pooling)


def _reference(file: GGUFFile, _threads: int, pooling: Pooling) -> Engine:
    from nestling.engine.reference import ReferenceEngine

    return ReferenceEngine(file, pooling=pooling)


def _auto(file: GGUFFile, threads: int, pooling: Pooling) -> Engine:
    """OpenVINO, or llama.cpp where OpenVINO has no processor it can run on."""
    try:
        return _openvino(file, threads, pooling)
    except (ImportError, RuntimeError) as reason:
        try:
            return _llamacpp(file, threads, pooling)
        except ImportError:
            raise EngineError(f"{file.path}: neither openvino ({reason}) nor xllamacpp can be loaded") from reason


_LOADERS: dict[EngineName, Callable[[GGUFFile, int, Pooling], Engine]] = {
    EngineName.AUTO: _auto,
    EngineName.OPENVINO: _openvino,
    EngineName.LLAMACPP: _llamacpp,
    EngineName.REFERENCE: _reference,
}
