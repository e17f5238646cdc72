"""A card's YAML head: written and judged by huggingface_hub, and by the rules of the hub that the library leaves to it.

The rules are those of the hub's specification of a model card (`modelcard.md` in its documentation).
"""

import re
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from nestling.errors import FileFormatError

LICENCE_FILES = ("LICENSE", "LICENSE.md")
"""What `license_link` may name inside the repository."""
_NAME = re.compile(r"[a-z0-9.-]+")


def front_matter(fields: Mapping[str, Any]) -> str:
    """A card's YAML head, with its two lines of dashes."""
    return f"---\n{huggingface_hub.ModelCardData(**fields).to_yaml()}\n---\n\n"


def is_url(link: str) -> bool:
    """True for what is not a file of the repository."""
    return link.startswith(("https://", "http://"))


def check_metadata(text: str) -> None:
    """Let huggingface_hub read a card's YAML head, and refuse with FileFormatError what it or the hub does not accept.

    The licence `other` has a name, in small letters, and a link: to one of `LICENCE_FILES`, or to an address.
    """
    try:
        data = huggingface_hub.ModelCard(text, ignore_metadata_errors=False).data
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"README.md: its head is not accepted ({' '.join(str(error).split())[:160]})") from None
    if not (licence := data.get("license")):
        raise FileFormatError("README.md: its head has no licence")
    name, link = str(data.get("license_name") or ""), str(data.get("license_link") or "")
    if licence == "other" and not _NAME.fullmatch(name):
        raise FileFormatError(f"README.md: license: other with license_name={name!r}: small letters, digits, . and -")
    if licence == "other" and link not in LICENCE_FILES and not is_url(link):
        raise FileFormatError(f"README.md: license_link={link!r}: {' or '.join(LICENCE_FILES)}, or an address")
