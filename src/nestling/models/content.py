"""Check of a model file's SHA-256 against its card, or against the hub's hash.

Every file of a model is checked when it is loaded: the model, its LoRA adapters, its multi-vector head, its vision
tower. A file without a card that is not in the hub's cache is not checked. Knows no formats but the card's.
"""

from pathlib import Path

from nestling._util.hashes import sha256_of
from nestling.errors import FileFormatError
from nestling.formats.card import Card, card_path
from nestling.models import hub

_DIGITS = 64
"""Hexadecimal digits of SHA-256; the hub has SHA-1 for small files, which model files never are."""


def check(path: Path) -> Path:
    """The path unchanged; FileFormatError for a file with another hash, whatever its size and times."""
    said = _said(path)
    if not said:
        return path
    found = sha256_of(path)
    for who, wanted in said.items():
        if wanted != found:
            again = f"remove {card_path(path).name} to use it as it is" if who != "the hub" else "pull it again"
            raise FileFormatError(
                f"{path}: changed since it was made: its SHA-256 is {found[:12]}..., {who} says {wanted[:12]}...; "
                f"make it again, or {again}"
            )
    return path


def _said(path: Path) -> dict[str, str]:
    """The expected hashes, by source."""
    try:
        card = Card.read(path)
    except FileFormatError:  # a JSON file of another kind
        card = None
    said = {card_path(path).name: card.sha256} if card and card.file == path.name else {}
    at_hub = hub.known_hash(path) or ""
    return said | ({"the hub": at_hub} if len(at_hub) == _DIGITS else {})
