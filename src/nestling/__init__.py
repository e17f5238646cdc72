"""nestling: jina-embeddings-v4 on your own hardware.

    import nestling
    model = nestling.Embedder.load("starter-retrieval:Q8_0")
    vectors = model.encode_query(["How do I open a socket?"])

Everything that a caller imports or catches is exported here. `import nestling` loads the errors only; other names
are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nestling._util.version import __version__
from nestling.errors import (
    BuildError,
    CheckpointError,
    EmptyTextError,
    EngineError,
    FileFormatError,
    GGUFError,
    ImageError,
    ImageSizeError,
    InputError,
    ModelNotFoundError,
    NestlingError,
    TextError,
    TextLengthError,
    UsageError,
)

if TYPE_CHECKING:
    from nestling import compat
    from nestling.inputs.late_chunking import Chunks
    from nestling.models.embedder import Embedder
    from nestling.models.families import read_spec
    from nestling.models.reranking import Ranked
    from nestling.spec import ModelSpec, Role, Task

__all__ = [
    "BuildError",
    "CheckpointError",
    "Chunks",
    "Embedder",
    "EmptyTextError",
    "EngineError",
    "FileFormatError",
    "GGUFError",
    "ImageError",
    "ImageSizeError",
    "InputError",
    "ModelNotFoundError",
    "ModelSpec",
    "NestlingError",
    "Ranked",
    "Role",
    "Task",
    "TextError",
    "TextLengthError",
    "UsageError",
    "__version__",
    "compat",
    "read_spec",
]

_HOMES = {
    "Chunks": "inputs.late_chunking",
    "Embedder": "models.embedder",
    "ModelSpec": "spec",
    "Ranked": "models.reranking",
    "Role": "spec",
    "Task": "spec",
    "read_spec": "models.families",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute
    if name == "compat":
        return import_module("nestling.compat")
    if name not in _HOMES:
        raise AttributeError(f"module 'nestling' has no attribute {name!r}")
    return getattr(import_module(f"nestling.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
