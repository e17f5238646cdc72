"""What a package index says of packages and applications, in several languages.

Formats: Translation-LANGUAGE files of Debian's index (stanzas with Package, Description-md5, Description-LANGUAGE) and
DEP-11 (AppStream's YAML). They are read to judge, never to train, and nothing of them is shipped.
"""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING

import yaml

from starter_recipe.battery.entries import XLING, Entry
from starter_recipe.text import is_prose, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CODES = {"zh": "zh%5fCN"}
_DEP11_CODES = {"zh": ("zh-Hans-CN", "zh-CN", "zh-Hans", "zh")}
_STANZA = re.compile(r"Package: (\S+)\nDescription-md5: (\S+)\nDescription-\S+: ([^\n]*)\n((?: [^\n]*\n?)*)")
_SUMMARY = re.compile(r"^Summary:\n(?:  .*\n)+", re.MULTILINE)
_PACKAGE = re.compile(r"^Package: (\S+)$", re.MULTILINE)
_SHORTEST_BODY, _BODY_CHARS = 120, 700


def read_translation(path: Path) -> dict[str, tuple[str, str, str]]:
    """Read a Translation file: MD5 of the English text -> (package, synopsis, body)."""
    found = {}
    for package, digest, synopsis, body in _STANZA.findall(path.read_text("utf-8")):
        found[digest] = (package, synopsis.strip(), squeeze(re.sub(r"^ \.$", "", body, flags=re.MULTILINE)))
    return found


def translated_descriptions(lists: Path, *, suite: str, before: str) -> Iterator[Entry]:
    """Yield translated synopsis -> English body of packages that are in a suite and were not in the one before it.

    The first checkpoint was trained on the descriptions of the earlier suite.
    """
    index = "*_dists_{}_main_i18n_Translation-{}"
    (old,), (new,) = (list(lists.glob(index.format(name, "en"))) for name in (before, suite))
    known = {part for package, synopsis, _ in read_translation(old).values() for part in (package, synopsis)}
    english = read_translation(new)
    for language in XLING:
        (path,) = lists.glob(index.format(suite, _CODES.get(language, language)))
        for digest, (package, synopsis, _) in read_translation(path).items():
            _, original, body = english.get(digest, ("", "", ""))
            fresh = package not in known and original not in known
            if fresh and synopsis != original and len(body) >= _SHORTEST_BODY and is_prose(synopsis, shortest=15):
                yield Entry(synopsis, body[:_BODY_CHARS], language, original)
    for package, synopsis, body in english.values():
        if package not in known and synopsis not in known and len(body) >= _SHORTEST_BODY:
            yield Entry("", body[:_BODY_CHARS])


def applications(lists: Path, *, suite: str, trained: tuple[str, ...]) -> Iterator[Entry]:
    """Yield an application's translated summary -> its English summary, without packages that were trained on."""
    (path,) = lists.glob(f"*_dists_{suite}_main_dep11_Components-*.yml.gz")
    for part in gzip.decompress(path.read_bytes()).decode("utf-8").split("\n---\n"):
        package, block = _PACKAGE.search(part), _SUMMARY.search(part + "\n")
        if package is None or block is None or package[1].startswith(trained):
            continue
        summary = yaml.safe_load(block[0])["Summary"]
        english = squeeze(str(summary.get("C", "")))
        for language in XLING:
            codes = _DEP11_CODES.get(language, (language,))
            text = squeeze(str(next((summary[code] for code in codes if code in summary), "")))
            if text != english and is_prose(english, shortest=18) and is_prose(text, shortest=15):
                yield Entry(text, english, language)
