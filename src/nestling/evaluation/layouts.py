"""Readers of the BEIR layout and of scored pairs: JSON Lines, TSV or Parquet; strict, with file and line in errors.

    corpus.jsonl    {"_id", "title" (optional), "text"}     or corpus.parquet, or corpus/*.parquet
                    {"_id", "image", "ocr" (optional)}      of pages: a path below the folder, or bytes in parquet
    queries.jsonl   {"_id", "text"}                         likewise
    qrels/test.tsv  query-id, corpus-id, score (default 1)  or qrels/test.jsonl, qrels/*.parquet, or the only file there
    pairs           {"sentence1", "sentence2", "score"}

The layout is that of the BEIR benchmark (Thakur et al. 2021); as there, a title and a space precede the text. ViDoRe's
(Faysse et al. 2024) is the same with other names, which are also read: `corpus-id`, `query-id` (integers, or with `_`)
and `query`. The first line of a TSV file names the columns. Lines, and rows of Parquet files, are counted from 1.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling._util.text import read_text
from nestling.errors import FileFormatError
from nestling.evaluation.pages import IMAGE, Page, parquet_rows

Row = dict[str, Any]
Numbered = Iterator[tuple[str, Row]]
"""Pairs of (`file:line`, row)."""
Grades = dict[str, dict[str, int]]
SUFFIXES = (".jsonl", ".tsv", ".parquet")


IDS = {"corpus": ("_id", "id", "corpus-id", "corpus_id"), "queries": ("_id", "id", "query-id", "query_id")}
QUERY, DOCUMENT, TEXT = ("query-id", "query_id"), ("corpus-id", "corpus_id"), ("text", "query")
OCR = "ocr"


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts by id in file order, the file and line of each, and images of pages, whose texts are their OCR text."""

    texts: dict[str, str]
    places: dict[str, str]
    pages: dict[str, Page]

    def place(self, identifier: str) -> str:
        """`file:line` of a text."""
        return self.places[identifier]


def read_texts(folder: Path, name: str) -> Texts:
    """Read `corpus` or `queries` of a folder.

    FileFormatError if there are none, for a duplicate id, an empty text, a missing page, a corpus that mixes pages and
    texts, or OCR text for some pages only.
    """
    files, with_ocr = _files(folder, name), dict[bool, str]()
    found = Texts({}, {}, {})
    for file in files:
        for place, row in read_rows(file):
            identifier = _identifier(row, IDS[name], place)
            if identifier in found.texts:
                raise FileFormatError(f"{place}: duplicate id {identifier!r}, also at {found.place(identifier)}")
            if name == "corpus" and _is_page(row):
                found.pages[identifier] = _page(folder, row, place)
                with_ocr.setdefault(row.get(OCR) is not None, place)
            found.texts[identifier] = _ocr(row, place) if identifier in found.pages else _text(row, place)
            found.places[identifier] = place
            if found.pages and len(found.pages) < len(found.texts):
                raise FileFormatError(f"{place}: expected only images or only texts in a corpus")
    if not found.texts:
        raise FileFormatError(f"{files[0]}: no texts: expected at least one line")
    if len(with_ocr) > 1:
        raise FileFormatError(
            f"{with_ocr[False]}: no {OCR}: expected it for all pages or for none, {with_ocr[True]} has one"
        )
    return found


def _is_page(row: Row) -> bool:
    """True unless the row has a text instead of an image."""
    return IMAGE in row and not (row[IMAGE] is None and row.get("text"))


def _page(folder: Path, row: Row, place: str) -> Page:
    image = row[IMAGE]
    if str(row.get("text") or "").strip():
        raise FileFormatError(f"{place}: an image and a text: expected the text of a page in {OCR!r}")
    if isinstance(image, Page):
        return image
    if not isinstance(image, str) or not image:
        raise FileFormatError(f"{place}: the image is missing: expected a path below {folder}, or bytes in parquet")
    if Path(image).is_absolute() or ".." in Path(image).parts:
        raise FileFormatError(f"{place}: image={image!r}: expected a path below {folder}")
    try:
        return Page.of(folder / image)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise FileFormatError(f"{place}: image={image!r}: cannot be read ({reason})") from None


def _ocr(row: Row, place: str) -> str:
    text = row.get(OCR)
    if text is not None and not isinstance(text, str):
        raise FileFormatError(f"{place}: {OCR}={text!r:.40}: expected a string")
    return text or ""


def read_judgements(folder: Path, *, documents: Collection[str], queries: Collection[str]) -> tuple[Grades, set[str]]:
    """Read `qrels`: -> (grades of the test split, ids of queries judged only in other splits)."""
    chosen, others = _split_files(folder / "qrels")
    grades: Grades = {}
    for file in chosen:
        for place, row in read_rows(file):
            query, document, grade = _judgement(row, place)
            for kind, identifier, known in (("query", query, queries), ("document", document, documents)):
                if identifier not in known:
                    raise FileFormatError(f"{place}: unknown {kind} id {identifier!r}")
            if document in grades.setdefault(query, {}):
                raise FileFormatError(f"{place}: duplicate judgement of {query!r} and {document!r}")
            grades[query][document] = grade
    elsewhere = {_judgement(row, place)[0] for file in others for place, row in read_rows(file)}
    return grades, elsewhere - grades.keys()


def read_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    """Read scored pairs: (left, right, score) for each row."""
    for place, row in read_rows(path):
        left, right = (_string(row, key, place) for key in ("sentence1", "sentence2"))
        score = _number(row.get("score"), place)
        yield left, right, score


def read_rows(path: Path) -> Numbered:
    """Every row of a file, in the format of its suffix, with file and line; empty lines are skipped."""
    if path.suffix not in SUFFIXES:
        raise FileFormatError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    return {".jsonl": _json_lines, ".tsv": _tab_lines, ".parquet": _parquet}[path.suffix](path)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _json_lines(path: Path) -> Numbered:
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{place}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise FileFormatError(f"{place}: expected a JSON object")
        yield place, row


def _tab_lines(path: Path) -> Numbered:
    columns: list[str] = []
    for place, line in _lines(path):
        cells = line.split("\t")
        if not columns:
            columns = cells
        elif len(cells) != len(columns):
            raise FileFormatError(f"{place}: {len(cells)} columns, the first line has {len(columns)}")
        else:
            yield place, dict(zip(columns, cells, strict=True))


def _parquet(path: Path) -> Numbered:
    yield from ((f"{path}:{number}", row) for number, row in enumerate(parquet_rows(path), 1))


def _files(folder: Path, name: str) -> list[Path]:
    single = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    files = single[:1] or sorted((folder / name).glob("*.parquet"))
    if not files:
        raise FileFormatError(
            f"{folder}: {name}.jsonl is missing; expected corpus.jsonl, queries.jsonl, qrels/test.tsv"
        )
    return files


def _split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files of the test split, files of other splits)."""
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    stems = {path.stem.partition("-")[0] for path in files}  # `test-00000-of-00001.parquet` is `test`
    if not stems:
        raise FileFormatError(f"{folder}: test.tsv is missing")
    if len(stems) > 1 and "test" not in stems:
        raise FileFormatError(f"{folder}: splits {', '.join(sorted(stems))}: expected test.tsv")
    wanted = "test" if "test" in stems else next(iter(stems))
    return (
        [path for path in files if path.stem.partition("-")[0] == wanted],
        [path for path in files if path.stem.partition("-")[0] != wanted],
    )


def _judgement(row: Row, place: str) -> tuple[str, str, int]:
    grade = _number(row.get("score", 1), place)
    if grade != int(grade) or grade < 0:
        raise FileFormatError(f"{place}: score={row['score']!r}: expected an integer from 0")
    return _identifier(row, QUERY, place), _identifier(row, DOCUMENT, place), int(grade)


def _identifier(row: Row, keys: Sequence[str], place: str) -> str:
    """The id, by the first of several names that exists; with ViDoRe's names it may be an integer."""
    key = next((key for key in keys if key in row), keys[0])
    value = row.get(key)
    return str(value) if type(value) is int and key != "_id" else _string(row, key, place)


def _string(row: Row, key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise FileFormatError(f"{place}: {key}={value!r}: expected a string")
    return value


def _text(row: Row, place: str) -> str:
    title, body = row.get("title") or "", next((row[key] for key in TEXT if key in row), None)
    if not isinstance(title, str) or not isinstance(body, str):
        raise FileFormatError(f"{place}: text is {body!r:.40}, title {title!r:.40}: expected strings")
    text = f"{title} {body}".strip() if title else body
    if not text.strip():
        raise FileFormatError(f"{place}: the text is empty")
    return text


def _number(value: object, place: str) -> float:
    number = math.nan
    if isinstance(value, int | float | str):
        with suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise FileFormatError(f"{place}: score={value!r}: expected a number")
    return number
