"""The client sections of docs/server.md and docs/moving.md, as programs that can be run against a server."""

import re
from dataclasses import dataclass
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT, MOVING = _DOCS / "server.md", _DOCS / "moving.md"
ADDRESS = "http://127.0.0.1:8080"
_SECTION = re.compile(r"^###? (.+?)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(bash|python|javascript)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One client's example: `language` is bash, python or javascript."""

    client: str
    language: str
    code: str

    def at(self, url: str) -> str:
        """The code for a server at another address."""
        assert ADDRESS in self.code
        return self.code.replace(ADDRESS, url)


def snippets(document: Path = DOCUMENT) -> dict[str, Snippet]:
    """Client, by its section's heading -> its example."""
    sections = _SECTION.findall(document.read_text("utf-8"))
    blocks = [(client, _BLOCK.search(text)) for client, text in sections]
    return {client: Snippet(client, found[1], found[2]) for client, found in blocks if found}
