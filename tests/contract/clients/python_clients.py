"""Run one of the real Python clients, by an interpreter that has its packages.

python -m tests.contract.clients.python_clients NAME URL     # prints what it got and its packages' versions as JSON
"""

import json
import sys
from importlib.metadata import version
from typing import Any

from tests.contract.clients import cohere_api, litellm_api, ollama_api, openai_api, tei_api, voyage_jina_api
from tests.contract.clients.table import CLIENTS

__all__ = ["CLIENTS", "cohere_api", "litellm_api", "ollama_api", "openai_api", "tei_api", "voyage_jina_api"]


def plain(found: Any) -> Any:
    """Vectors of any kind of array as lists of floats."""
    if isinstance(found, int | float):
        return found
    return [plain(one) for one in found.tolist()] if hasattr(found, "tolist") else [plain(one) for one in found]


def main(name: str, url: str) -> None:
    """Run one client and print what it got."""
    chosen = CLIENTS[name]
    found = {key: plain(value) for key, value in chosen.run(url).items()}
    sys.stdout.write(json.dumps({"found": found, "versions": {one: version(one) for one in chosen.packages}}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
