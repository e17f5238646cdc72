"""The table of the battery's sets: task, domain, whether withheld and why, and the reader that makes each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starter_recipe.battery import descriptions, functions, pages, texts
from starter_recipe.battery import packages as names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from starter_recipe.battery.entries import Entry

RETRIEVAL, MATCHING, CODE = "retrieval", "text-matching", "code"
SHIPPED = {"perlfaq-en": RETRIEVAL, "code-docstring": CODE, "xling-manpages": RETRIEVAL}
"""The sets of nestling-data and the task that each is judged with."""


class SetNameError(ValueError):
    """A set that there is none of, or that is withheld."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the fetched packages lie."""

    debian: Path
    wheels: Path
    lists: Path

    def packages(self, wanted: list[str]) -> list[Path]:
        """The folders of some packages."""
        return [self.debian / name for name in wanted]


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set of the battery. `withheld` is the reason why nothing may be chosen by it; empty if it is visible."""

    name: str
    task: str
    contents: str
    licence: str
    read: Callable[[Sources], Iterator[Entry]]
    withheld: str = ""


def _faq(sources: Sources) -> Iterator[Entry]:
    for folder in sources.packages(names.FAQ):
        yield from pages.questions(_pages(folder, names.FAQ_PAGES), "en")


def _pages(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})


def _translated(sources: Sources, patterns: dict[str, str], accept: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield heading -> section of the translated pages of packages: one path a package, with places for codes."""
    for package, pattern in patterns.items():
        for language, codes in names.LANGUAGE_CODES.items():
            files = sorted((sources.debian / package).glob(pattern.format(*codes)))
            yield from pages.entries(files, language, accept)


def _translated_faq(sources: Sources) -> Iterator[Entry]:
    return _translated(sources, names.TRANSLATED_FAQ, pages.is_question)


def _translated_titles(sources: Sources) -> Iterator[Entry]:
    return _translated(sources, names.TRANSLATED_MANUALS, pages.is_title)


def _kicad(sources: Sources) -> Iterator[Entry]:
    return _translated(sources, dict.fromkeys(names.KICAD_PACKAGES, names.KICAD), pages.is_title)


def _titles(sources: Sources) -> Iterator[Entry]:
    for folder in sources.packages(names.TITLES):
        yield from pages.titles(sorted(path for path in folder.rglob("*.html") if path.is_file()), "en")


def _snippets(sources: Sources) -> Iterator[Entry]:
    for folder in sources.packages(names.SNIPPETS):
        yield from pages.snippets(sorted(path for path in folder.rglob("*.html") if path.is_file()))


def _glosses(sources: Sources) -> Iterator[Entry]:
    for language, package in names.FREEDICT.items():
        yield from texts.glosses(texts.dictionary(sources.debian / package), language)


def _terms(sources: Sources) -> Iterator[Entry]:
    known = texts.heads(texts.dictionary(sources.debian / names.TRAINED_TERMS))
    for folder in sources.packages(names.TERMS):
        yield from texts.terms(texts.dictionary(folder), known)


def _descriptions(sources: Sources) -> Iterator[Entry]:
    return descriptions.translated_descriptions(sources.lists, suite=names.SUITE, before=names.BEFORE)


def _applications(sources: Sources) -> Iterator[Entry]:
    return descriptions.applications(sources.lists, suite=names.SUITE, trained=names.TRAINED_APPLICATIONS)


def _messages(sources: Sources) -> Iterator[Entry]:
    return texts.messages(sources.packages(names.DESKTOP))


def _command_line(sources: Sources) -> Iterator[Entry]:
    return texts.messages(sources.packages(names.COMMAND_LINE))


def _manual_pages(sources: Sources) -> Iterator[Entry]:
    return texts.manual_pages(sources.packages(names.MANUAL_PAGES))


def _python(sources: Sources) -> Iterator[tuple[str, str]]:
    return functions.python_functions(sorted(sources.wheels.glob("*.whl")))


def _docstrings(sources: Sources) -> Iterator[Entry]:
    return functions.by_docstring(_python(sources))


def _identifiers(sources: Sources) -> Iterator[Entry]:
    return functions.by_name(_python(sources))


def _go(sources: Sources) -> Iterator[Entry]:
    return functions.go_functions(sources.packages(names.GO))


_TWIN = "the withheld twin of"
SETS = (
    SetSpec("faq-en", RETRIEVAL, "question -> answer, English", "of each package (GPL, BSD, MIT, GFDL)", _faq),
    SetSpec("titles-en", RETRIEVAL, "title -> section, English", "GPL-3+, GPL-2+, IPL, Apache-2.0, BSD-3", _titles),
    SetSpec("titles-xx", RETRIEVAL, "title -> section of its language", "GPL, Apache-2.0", _translated_titles),
    SetSpec("man-en", RETRIEVAL, "NAME line of a manual page -> its description", "of each package", _manual_pages),
    SetSpec(
        "descriptions-xx", RETRIEVAL, "translated synopsis -> English package description", "not stated", _descriptions
    ),
    SetSpec("messages-xx", MATCHING, "message -> English message, desktop programs", "GPL-2+, GPL-3+", _messages),
    SetSpec("glosses-xx", MATCHING, "word -> gloss in another language", "GPL, CC BY-SA", _glosses),
    SetSpec("code-python", CODE, "docstring -> function, Python", "MIT, BSD, Apache-2.0, GPL", _docstrings),
    SetSpec("code-snippets", CODE, "sentence of a manual -> the code after it", "BSD-3, MIT, Apache-2.0", _snippets),
    SetSpec(
        "faq-xx",
        RETRIEVAL,
        "question -> answer of its language",
        "GPL-2, GPL-3+, Apache-2.0",
        _translated_faq,
        f"{_TWIN} faq-en: questions in other languages",
    ),
    SetSpec(
        "apps-xx",
        MATCHING,
        "application's summary -> English summary (AppStream)",
        "CC0-1.0, FSFAP, of each application",
        _applications,
        f"{_TWIN} descriptions-xx: the ground that the last training lost",
    ),
    SetSpec(
        "messages-cli-xx",
        MATCHING,
        "message -> English message, command-line tools",
        "GPL-2, GPL-3+, Apache-2.0",
        _command_line,
        f"{_TWIN} messages-xx: programs of another kind",
    ),
    SetSpec(
        "titles-kicad-xx",
        RETRIEVAL,
        "title -> section of its language, KiCad's manuals",
        "GPL-3+, CC BY 3.0",
        _kicad,
        f"{_TWIN} titles-xx: electronics",
    ),
    SetSpec("terms-en", RETRIEVAL, "term -> definition, English", "public domain", _terms, f"{_TWIN} glosses-xx"),
    SetSpec(
        "code-go",
        CODE,
        "doc comment -> function, Go",
        "BSD-3, Apache-2.0, BSD-2",
        _go,
        "a programming language that the earlier starters never saw",
    ),
    SetSpec(
        "code-names",
        CODE,
        "words of a function's name -> function, Python",
        "MIT, BSD, Apache-2.0, GPL",
        _identifiers,
        f"{_TWIN} code-python: questions of a few words",
    ),
)
SIMILARITY = {f"similarity-{language}": language for language in ("en", "de", "es")}
"""Sentence pairs of our own with grades, in `similarity.tsv`: Spearman instead of nDCG."""


def tasks() -> dict[str, str]:
    """Every set's task."""
    return {**SHIPPED, **{one.name: one.task for one in SETS}, **dict.fromkeys(SIMILARITY, MATCHING)}


def withheld() -> dict[str, str]:
    """The withheld sets and the reason of each."""
    return {one.name: one.withheld for one in SETS if one.withheld}


def chosen_sets(named: Sequence[str], *, look: bool) -> list[str]:
    """The sets to judge by: those named, or all that may be looked at; SetNameError for another."""
    hidden = withheld()
    for name in named:
        if name not in tasks():
            raise SetNameError(f"{name}: expected one of {', '.join(tasks())}")  # noqa: TRY003 - the sentence is the message
        if name in hidden and not look:
            raise SetNameError(f"{name} is withheld ({hidden[name]}): expected --withheld, once, at the end")  # noqa: TRY003 - the sentence is the message
    return list(named) or [name for name in tasks() if look or name not in hidden]
