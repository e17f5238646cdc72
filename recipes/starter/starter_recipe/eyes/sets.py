"""Makes the two shipped sets: `pages-en` (question -> page of a manual) and `emoji-names` (name -> emoji).

Reads  WORK/debian, WORK/npm, a checkpoint's tokenizer; tesseract (Debian: tesseract-ocr) reads the pages.
Writes OUT/pages-en and OUT/emoji-names in BEIR's layout, each with PNG files: the same bytes for the same packages.

A page is the answer to a question of a manual's FAQ, without the question and without code, set in one of 20 fonts, of
which half of the pages have one that nothing trains on. The emoji are of a font that nothing trains on.
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from starter_recipe.data import write_jsonl
from starter_recipe.eyes.pictures import LANGUAGES, UNSEEN, drawn, emoji_drawings, emoji_names, slug
from starter_recipe.eyes.tower import CELL
from starter_recipe.eyes.typeset import LATIN, Look, draw, fonts
from starter_recipe.eyes.typeset import UNSEEN as UNSEEN_FONTS
from starter_recipe.sources.html_blocks import html_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MANUALS = {
    "Borg 1.2 documentation": "borgbackup-doc/**/html/faq.html",
    "Scrapy 2.8 documentation": "python-scrapy-doc/**/html/faq.html",
    "SQLAlchemy 1.4 documentation": "python-sqlalchemy-doc/**/html/faq/*.html",
    "Django 3.2 documentation": "python-django-doc/**/html/faq/*.html",
    "Network UPS Tools FAQ": "nut-doc/**/html/FAQ.html",
}
PAGES, EMOJI, ASKED = 134, 400, 100
ANSWER_CHARS = (250, 1600)
WIDTHS, HIGHEST = (448, 504, 560), 784
SIZES = (14, 20)
EMOJI_SIDE, COLOURS, GREYS = 72, 48, 8
SEED = 21


@dataclass(frozen=True, slots=True)
class Answer:
    """A question of a manual and the paragraphs that answer it."""

    manual: str
    question: str
    paragraphs: list[str]


def answers(debian: Path) -> Iterator[Answer]:
    """Every question with an answer of a page's length."""
    for manual, pattern in MANUALS.items():
        for path in sorted(debian.glob(pattern)):
            heading = ""
            for is_heading, blocks in groupby(html_blocks(path), key=lambda block: block.heading):
                texts = [block.text for block in blocks]
                if is_heading:
                    heading = texts[-1]
                elif heading.endswith("?") and ANSWER_CHARS[0] <= sum(map(len, texts)) <= ANSWER_CHARS[1]:
                    yield Answer(manual, heading.lstrip("0123456789. "), texts)


def page_image(answer: Answer, look: Look, width: int, tokenizer: Tokenizer) -> Image.Image:
    """Set an answer below its manual's name; as high as it needs, at most `HIGHEST`."""
    text = "\n\n".join((answer.manual, *answer.paragraphs))
    pixels = draw(text, (HIGHEST, width), look, tokenizer).pixels
    used = int(np.flatnonzero((pixels != look.paper).any(1))[-1]) + look.top
    height = min(HIGHEST, -(-used // CELL) * CELL)
    return grey_palette(pixels[:height])


def grey_palette(pixels: NDArray[np.uint8]) -> Image.Image:
    """Grey pixels with few levels, which a PNG file stores in four bits."""
    image = Image.fromarray(np.round(pixels / 255 * (GREYS - 1)).astype(np.uint8), "P")
    levels = [round(255 * level / (GREYS - 1)) for level in range(GREYS)]
    image.putpalette([level for level in levels for _ in range(3)])
    return image


def read_page(path: Path) -> str:
    """A page's text as tesseract reads it."""
    done = subprocess.run(["tesseract", str(path), "-", "-l", "eng"], capture_output=True, text=True, check=True)  # noqa: S603, S607
    return done.stdout.strip()


def write_set(folder: Path, corpus: list[dict[str, Any]], queries: list[dict[str, Any]], relevant: list[str]) -> None:
    """Write the three files of BEIR's layout."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", queries)
    rows = (f"{query['_id']}\t{document}\t1\n" for query, document in zip(queries, relevant, strict=True))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")


def make_pages(work: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `pages-en`."""
    random = np.random.default_rng(SEED)
    unique = list({answer.question: answer for answer in answers(work / "debian")}.values())
    chosen = [unique[place] for place in random.permutation(len(unique))[:PAGES]]
    known, unseen = fonts(work, LATIN), fonts(work, UNSEEN_FONTS)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    corpus, queries, relevant = [], [], []
    for number, answer in enumerate(chosen):
        choices = unseen if number % 2 else known
        font, size = choices[random.integers(len(choices))], int(random.integers(SIZES[0], SIZES[1] + 1))
        look = Look(
            font, size, float(random.uniform(1.2, 1.5)), int(random.integers(8, 28)), int(random.integers(8, 28))
        )
        name = f"images/p{number}.png"
        image = page_image(answer, look, int(random.choice(WIDTHS)), tokenizer)
        image.save(folder / name, bits=4, optimize=True)
        metadata = {"font": font.stem, "size": size, "unseen": bool(number % 2), "manual": answer.manual}
        corpus.append({"_id": f"p{number}", "image": name, "ocr": read_page(folder / name), "metadata": metadata})
        queries.append({"_id": f"q{number}", "text": answer.question})
        relevant.append(f"p{number}")
    write_set(folder, corpus, queries, relevant)


def make_emoji(work: Path, folder: Path) -> None:
    """Write `emoji-names`."""
    random = np.random.default_rng(SEED)
    names = emoji_names(work)
    slugs = {slug(one["en"]): key for key, one in names.items()}
    found = list(emoji_drawings(work, UNSEEN, names, slugs))
    chosen = [found[place] for place in random.permutation(len(found))[:EMOJI]]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    corpus, queries, relevant = [], [], []
    for number, (_, text, one) in enumerate(chosen):
        name = f"images/e{number}.png"
        emoji_image(text).save(folder / name, optimize=True)
        corpus.append({"_id": f"e{number}", "image": name})
        for language in LANGUAGES if number < ASKED else ():
            queries.append({"_id": f"{language}{number}", "text": one[language], "metadata": {"lang": language}})
            relevant.append(f"e{number}")
    write_set(folder, corpus, queries, relevant)


def emoji_image(text: str) -> Image.Image:
    """An emoji on white, in few colours."""
    image = Image.fromarray(drawn(text, EMOJI_SIDE))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work-eyes"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json, for typesetting")
    parser.add_argument("--output", type=Path, required=True, help="folder of the two sets")
    options = parser.parse_args()
    make_pages(options.work, Tokenizer.from_file(str(options.tokenizer)), options.output / "pages-en")
    make_emoji(options.work, options.output / "emoji-names")
    for path in sorted(options.output.glob("*/images")):
        print(path.parent.name, sum(one.stat().st_size for one in path.iterdir()), "bytes of images")


if __name__ == "__main__":
    main()
