"""The dialects that the server speaks. Errors of paths that none of them has are written as the first one writes them.

On a path that several have and a body that does not tell, the first one is meant.
"""

from nestling.server.api import cohere, jina, llama_server, ollama, openai, tei, vllm, voyage
from nestling.server.api.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    openai.DIALECT,
    jina.DIALECT,
    llama_server.DIALECT,
    ollama.DIALECT,
    tei.DIALECT,
    cohere.DIALECT,
    voyage.DIALECT,
    vllm.DIALECT,
)
