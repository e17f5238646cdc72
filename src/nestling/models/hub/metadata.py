"""The rules for a model card's YAML front matter that huggingface_hub leaves to the hub.

Those rules are from the hub's specification of model cards (`modelcard.md` in its documentation).
"""

import re

from nestling.errors import FileFormatError
from nestling.formats.model_card import read_front_matter

LICENCE_FILES = ("LICENSE", "LICENSE.md")
"""The files that `license_link` may name in the repository."""
_NAME = re.compile(r"[a-z0-9.-]+")


def is_url(link: str) -> bool:
    """True for a URL, false for a file of the repository."""
    return link.startswith(("https://", "http://"))


def check_metadata(text: str) -> None:
    """FileFormatError for front matter that huggingface_hub or the hub would refuse.

    The licence `other` needs a name in lower case and a link to one of `LICENCE_FILES` or to a URL.
    """
    data = read_front_matter(text, strict=True)
    if not (licence := data.get("license")):
        raise FileFormatError("README.md: the front matter has no license")
    name, link = str(data.get("license_name") or ""), str(data.get("license_link") or "")
    if licence == "other" and not _NAME.fullmatch(name):
        raise FileFormatError(f"README.md: license: other with license_name={name!r}: expected a-z 0-9 . -")
    if licence == "other" and link not in LICENCE_FILES and not is_url(link):
        raise FileFormatError(f"README.md: license_link={link!r}: expected {' or '.join(LICENCE_FILES)}, or a URL")
