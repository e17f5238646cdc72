"""Translation catalogues (gettext .mo files): one English message, its translations as parallel texts.

Format: the GNU gettext manual, section "The Format of GNU MO Files".
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING

from starter_recipe.records import Item, Text
from starter_recipe.text import is_prose, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAGIC_LITTLE = 0x950412DE
_FOLDERS = {"de": "de", "fr": "fr", "es": "es", "ja": "ja", "zh_CN": "zh", "ru": "ru"}
_TAG = re.compile(r"<[^<>]{1,120}>")
_CJK_KEY = re.compile(r"\((?:[_&~][A-Za-z0-9])\)")
_ACCELERATOR = re.compile(r"[_&~](?=\w)|(?<=\w)_(?=\w{3})")
_FORMAT = re.compile(r"%(?:\d+\$)?[-+0-9.]*l{0,2}[a-zA-Z]|%\d|\{[^{}]*\}|\$[\w(]")
_TRAILING = ":\uff1a\u2026 "
_MOST_PLACEHOLDERS = 2
_CAP_PER_CATALOGUE = 6000


def read_catalogue(path: Path) -> dict[str, str]:
    """Read a .mo file: message -> translation, first plural form, context removed."""
    data = path.read_bytes()
    order = "<" if struct.unpack_from("<I", data)[0] == _MAGIC_LITTLE else ">"
    count, originals, translations = struct.unpack_from(order + "3I", data, 8)
    messages = {}
    for index in range(count):
        message = _string(data, order, originals + 8 * index)
        messages[message.rsplit("\x04", 1)[-1]] = _string(data, order, translations + 8 * index)
    return messages


def _string(data: bytes, order: str, entry: int) -> str:
    """Read the string that a (length, offset) table entry points to, up to its first NUL."""
    length, offset = struct.unpack_from(order + "2I", data, entry)
    return data[offset : offset + length].split(b"\0", 1)[0].decode("utf-8", "replace")


def clean_message(message: str) -> str:
    """Remove mark-up and keyboard accelerators; empty when the message is mostly placeholders."""
    if len(_FORMAT.findall(message)) > _MOST_PLACEHOLDERS or "translator" in message[:20].lower():
        return ""
    plain = _ACCELERATOR.sub("", _CJK_KEY.sub("", _TAG.sub(" ", message)))
    return squeeze(plain.replace("\\n", " ")).rstrip(_TRAILING)


def catalogue_items(root: Path) -> Iterator[Item]:
    """Yield the records of every catalogue below `root` that exists in at least one of our languages."""
    for (package, _), files in sorted(_catalogues(root).items()):
        source = f"catalogue/{package}"
        groups = _translations(files)
        for english, texts in islice(groups.items(), _CAP_PER_CATALOGUE):
            if len(english.split()) == 1 or not is_prose(english, longest=420):
                continue
            yield Text(english, english, source)
            yield from _translated(english, texts, source)


def _catalogues(root: Path) -> dict[tuple[str, str], dict[str, Path]]:
    """Find (package, domain) -> {language: file}."""
    found: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for folder, language in _FOLDERS.items():
        for path in root.glob(f"*/**/{folder}/LC_MESSAGES/*.mo"):
            found[path.relative_to(root).parts[0], path.stem][language] = path
    return found


def _translations(files: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Group one catalogue's languages by cleaned English message."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for language, path in sorted(files.items()):
        for message, translation in read_catalogue(path).items():
            english = clean_message(message)
            if english:
                groups[english][language] = clean_message(translation)
    return groups


def _translated(english: str, texts: dict[str, str], source: str) -> Iterator[Item]:
    """Yield each real translation as an anchored text."""
    for language, text in texts.items():
        if text == english or not is_prose(text, shortest=4, longest=500):
            continue
        yield Text(text, english, source, language)
