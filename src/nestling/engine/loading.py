"""Choose and load an engine by name; the heavy packages are imported only here, when they are wanted."""

import os
from collections.abc import Callable
from enum import StrEnum
from typing import Self

from nestling.engine.base import Engine
from nestling.errors import EngineError, UsageError
from nestling.gguf_io import GGUFFile


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


def load_engine(file: GGUFFile, *, name: EngineName, threads: int | None = None) -> Engine:
    """Load the file into an engine with so many threads (all usable processors by default)."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: at least 1", param="threads")
    return _LOADERS[name](file, threads or usable_threads())


def _openvino(file: GGUFFile, threads: int) -> Engine:
    from nestling.engine.openvino import OpenVINOEngine

    return OpenVINOEngine(file, threads=threads)


def _llamacpp(file: GGUFFile, threads: int) -> Engine:
    from nestling.engine.llamacpp import LlamaCppEngine

    return LlamaCppEngine(file, threads=threads)


def _reference(file: GGUFFile, _threads: int) -> Engine:
    from nestling.engine.reference import ReferenceEngine

    return ReferenceEngine(file)


def _auto(file: GGUFFile, threads: int) -> Engine:
    """OpenVINO, or llama.cpp where OpenVINO has no processor it can run on."""
    try:
        return _openvino(file, threads)
    except (ImportError, RuntimeError) as reason:
        try:
            return _llamacpp(file, threads)
        except ImportError:
            raise EngineError(f"{file.path}: neither openvino ({reason}) nor xllamacpp can be loaded") from reason


_LOADERS: dict[EngineName, Callable[[GGUFFile, int], Engine]] = {
    EngineName.AUTO: _auto,
    EngineName.OPENVINO: _openvino,
    EngineName.LLAMACPP: _llamacpp,
    EngineName.REFERENCE: _reference,
}
