"""The dialects that the server speaks. Errors of paths that none of them has are written as the first one writes them.

No two dialects may have the same path.
"""

from nestling.server.api import jina, llama_server, openai
from nestling.server.api.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    openai.DIALECT,
    jina.DIALECT,
    llama_server.DIALECT,
)
