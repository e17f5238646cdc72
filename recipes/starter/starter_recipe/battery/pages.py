"""Help pages in HTML: questions and their answers, titles and their paragraphs, sentences and the code after them."""

from __future__ import annotations

import html
import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from starter_recipe.battery.entries import Entry
from starter_recipe.sources.html_blocks import Block, html_blocks
from starter_recipe.text import is_prose, squeeze, weight_chars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

ANSWER_CHARS, SHORTEST_ANSWER = 700, 80
_NUMBER = re.compile(
    r"^(?:Chapter |Kapitel |Chapitre |Capítulo |第)?(?:[A-Z]?\d[\d.]*|[A-Z]\.\d*|[IVX]+\.)\s*(?:章)?[.):]?\s*"
)
_QUESTION = re.compile("[?\uff1f]$")
_NOT_A_TITLE = re.compile(r"[()_=]|:$|^\W")
_FOREIGN = re.compile(r"-(fr|it|bg)\.html$")
_HELPLESS = re.compile(r"^(see also|example|note|syntax|description|contents|index|faq|q:|summary)", re.IGNORECASE)
_SNIPPET = re.compile(
    r"<p>((?:(?!</p>)[\s\S]){30,500}:)</p>\s*"
    r"<div class=\"highlight[^>]*>(?:<div class=\"highlight\">)?<pre>([\s\S]*?)</pre>"
)
_SCRIPTS = {"ja": re.compile(r"[぀-ヿ㐀-鿿]"), "zh": re.compile(r"[㐀-鿿]")}
_COMMON = {
    "en": "the of to and is in that for with you this it are be or can if on",
    "de": "der die das und ist den mit sie nicht ein eine für auf werden wird oder zu des",
    "fr": "le les des et est une pour dans vous pas sur du par que qui au ou avec",
    "es": "el los las que una para por con se su del es no como si puede o lo",
}
_TAG = re.compile(r"<[^>]*>")
_SNIPPET_LINES = range(2, 40)
_SNIPPET_CHARS, _FEWEST_WORDS, _SHORTEST_FOREIGN = 1200, 2, 12


def sections(blocks: Iterable[Block]) -> Iterator[tuple[str, str]]:
    """Yield (heading, text until the next heading) of a page, the text cut at a length."""
    heading, parts = "", [""]
    for block in [*blocks, Block("", heading=True)]:
        if block.heading:
            text = squeeze(" ".join(parts))[:ANSWER_CHARS]
            if heading and weight_chars(text) >= SHORTEST_ANSWER:
                yield heading, text
            heading, parts = squeeze(_NUMBER.sub("", block.text)), []
        else:
            parts.append(block.text)


def is_question(heading: str) -> bool:
    """Tell whether a heading is a question worth asking."""
    return bool(_QUESTION.search(heading)) and is_prose(heading, shortest=18, longest=200)


def is_title(heading: str) -> bool:
    """Tell whether a heading says what its section is about."""
    usable = is_prose(heading, shortest=10, longest=120) and not _HELPLESS.match(heading)
    usable = usable and not _NOT_A_TITLE.search(heading)
    words = (
        weight_chars(heading) >= _SHORTEST_FOREIGN if not heading.isascii() else len(heading.split()) >= _FEWEST_WORDS
    )
    return usable and words and not _QUESTION.search(heading)


def entries(files: Iterable[Path], language: str, accept: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield heading -> section of every page whose heading is accepted."""
    for path in files:
        if _FOREIGN.search(path.name):
            continue
        for heading, text in sections(html_blocks(path)):
            if accept(heading) and speaks(heading + " " + text, language):
                yield Entry(heading, text, language, within=language != "en")


def speaks(text: str, language: str) -> bool:
    """Tell whether a text is in a language and not left in English, by its script or its commonest words."""
    if language in _SCRIPTS:
        return len(_SCRIPTS[language].findall(text)) >= 0.25 * len(text)
    words = Counter(re.findall(r"\w+", text.lower()))
    common = {code: sum(words[word] for word in listed.split()) for code, listed in _COMMON.items()}
    return max(common, key=common.__getitem__) == language


questions = partial(entries, accept=is_question)
titles = partial(entries, accept=is_title)


def snippets(files: Iterable[Path]) -> Iterator[Entry]:
    """Yield sentence -> the code that follows it: a paragraph that ends in a colon before a highlighted block."""
    for path in files:
        for before, code in _SNIPPET.findall(path.read_text("utf-8", "replace")):
            sentence = squeeze(html.unescape(_TAG.sub("", before))).rstrip(":")
            plain = html.unescape(_TAG.sub("", code)).strip()
            if (
                len(plain.splitlines()) in _SNIPPET_LINES
                and len(plain) <= _SNIPPET_CHARS
                and is_prose(sentence, shortest=30)
            ):
                yield Entry(sentence, plain)
