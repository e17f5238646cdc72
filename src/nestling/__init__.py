"""nestling: jina-embeddings-v4 on your own hardware.

    import nestling
    model = nestling.Embedder.load("starter-retrieval:Q8_0")
    vectors = model.encode_query(["How do I open a socket?"])

Importing the package loads nothing heavy: `Embedder` is fetched when it is first used.
"""

from typing import TYPE_CHECKING, Any

from nestling._util.version import __version__
from nestling.errors import NestlingError

if TYPE_CHECKING:
    from nestling.models.embedder import Embedder

__all__ = ["Embedder", "NestlingError", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute
    if name == "Embedder":
        from nestling.models.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'nestling' has no attribute {name!r}")
