"""Make the calibration text that ships with the package: paragraphs and code of many kinds, clearly licensed.

    PYTHONPATH=../starter python make_calibration.py --benchmarks BENCHMARKS --work work --out OUT

Reads  Debian 12's registry through apt-get (packages in `SOURCES` below), and the benchmark sets to keep them out.
Writes OUT/calibration.txt and WORK/fetched.txt. Equal packages give an equal text.

A text that equals a benchmark text after normalisation, or begins like a benchmark document, is left out, as are
NAME lines of manual pages, and modules of the standard library that a benchmark set took a function from.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starter_recipe.exclude import Bans
from starter_recipe.sources import manpages
from starter_recipe.sources.html_blocks import html_blocks
from starter_recipe.sources.python_code import functions
from starter_recipe.text import is_prose, weight_chars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = 0
BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Source:
    """A package, how it is read, and how many bytes of it are wanted."""

    package: str
    read: Callable[[Path], Iterator[str]]
    wanted_bytes: int


def manual_pages(root: Path) -> Iterator[str]:
    """Paragraphs of the pages below `root`, their NAME lines left out."""
    for path in sorted(root.glob("usr/share/man/**/man[1-8]/*.gz")):
        if not path.is_symlink():
            sections = manpages._sections(manpages._source(path))  # NAME is the first one
            blocks = [block for _, section in sections[1:] for block in section]
            yield from (block for block in blocks if is_prose(block, shortest=120, longest=1800))


def web_pages(root: Path) -> Iterator[str]:
    """Paragraphs of a manual in HTML."""
    for path in sorted(root.rglob("*.html")):
        if path.is_file() and not path.is_symlink():
            yield from (one.text for one in html_blocks(path) if is_prose(one.text, shortest=120, longest=1800))


def glosses(root: Path) -> Iterator[str]:
    """Definitions with their examples, and the words that they define."""
    for path in sorted(root.rglob("data.*")):
        for line in path.read_text("utf-8").splitlines():
            head, found, gloss = line.partition(" | ")
            if found and not line.startswith(" "):
                yield f"{head.split()[4].replace('_', ' ')}: {gloss.strip()}"


def poems(root: Path) -> Iterator[str]:
    """Poems and sayings; with terminal colour codes removed."""
    for path in sorted(root.glob("usr/share/games/fortunes/*")):
        if path.suffix not in (".dat", ".u8"):
            text = re.sub(r"\x1b\[[\d;]*m", "", path.read_text("utf-8", "replace"))
            yield from (part.strip() for part in text.split("\n%\n") if 40 < weight_chars(part) < 1800)


def python_functions(root: Path, banned: set[str]) -> Iterator[str]:
    """Functions of the standard library, each under its docstring's first paragraph."""
    folder = root / "usr/lib/python3.11"
    for path in sorted(folder.rglob("*.py")):
        if path.is_file() and str(path.relative_to(folder)) not in banned and "test" not in path.parts:
            for summary, code in functions(path.read_text("utf-8", "replace")):
                yield f"# {summary}\n" + BLANK_LINES.sub("\n", code)[:1800]


def sources(bans: Bans) -> list[Source]:
    """All sources; a third is English prose, a fifth code."""
    found = [Source("manpages", manual_pages, 36_000), Source("debian-reference-en", web_pages, 36_000)]
    languages = "de fr es zh ru pl it pt-br nl cs da ro uk"
    found += [Source(f"manpages-{language}", manual_pages, 12_000) for language in languages.split()]
    languages = "de fr es it pt zh-cn zh-tw"
    found += [Source(f"debian-reference-{language}", web_pages, 8_000) for language in languages.split()]
    found.append(Source("debian-reference-ja", web_pages, 20_000))
    found += [Source("wordnet-base", glosses, 48_000), Source("fortunes-zh", poems, 12_000)]
    return [*found, Source("libpython3.11-stdlib", lambda root: python_functions(root, bans.modules), 84_000)]


def fetch(names: list[str], work: Path) -> None:
    """Download and unpack the packages that are missing."""
    downloads = work / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    have = {path.name.split("_")[0] for path in downloads.glob("*.deb")}
    if missing := [name for name in names if name not in have]:
        subprocess.run(["apt-get", "download", *missing], cwd=downloads, check=True)
    packages = sorted(downloads.glob("*.deb"))
    for package in packages:
        target = work / "debian" / package.name.split("_")[0]
        if not target.exists():
            raw = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
                archive.extractall(target, filter="tar")
    (work / "fetched.txt").write_text("".join(f"{package.name}\n" for package in packages), "utf-8")


def chosen(source: Source, root: Path, bans: Bans) -> list[str]:
    """Texts of a source up to the bytes wanted, drawn from all of it."""
    texts = list(dict.fromkeys(source.read(root)))
    random.Random(SEED).shuffle(texts)  # noqa: S311 - not a secret
    taken: list[str] = []
    left = source.wanted_bytes
    for text in texts:
        if left > 0 and not bans.hits(text) and not any(bans.hits(line) for line in text.split("\n")):
            taken.append(text)
            left -= len(text.encode())
    assert left <= 0, f"{source.package}: {left} bytes are missing"
    return taken


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of the three benchmark sets")
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bans = Bans.load(options.benchmarks)
    wanted = sources(bans)
    fetch([source.package for source in wanted], options.work)
    texts = [text for source in wanted for text in chosen(source, options.work / "debian" / source.package, bans)]
    random.Random(SEED).shuffle(texts)  # noqa: S311 - so that any part of it is like the whole
    path = options.out / "calibration.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print(f"{path}: {len(texts)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
