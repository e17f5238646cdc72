"""BEIR layout and scored pairs, from JSON lines, tab-separated lines or parquet; strict, with file and line in errors.

    corpus.jsonl    {"_id", "title" (optional), "text"}     or corpus.parquet, or corpus/*.parquet
    queries.jsonl   {"_id", "text"}                         likewise
    qrels/test.tsv  query-id, corpus-id, score (1 without)  or qrels/test.jsonl, qrels/*.parquet, or the only file there
    pairs           {"sentence1", "sentence2", "score"}

The layout is that of the BEIR benchmark (Thakur et al. 2021); as there, a title goes in front of its text with a
space between. In tab-separated files the first line names the columns. Lines are counted from 1, rows of parquet too.
"""

import json
import math
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling._util.text import read_text
from nestling.errors import FileFormatError
from nestling.evaluation import extras

Row = dict[str, Any]
Numbered = Iterator[tuple[str, Row]]
"""Pairs of a place (`file:line`) and its row."""
Grades = dict[str, dict[str, int]]
SUFFIXES = (".jsonl", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts by id in the order of the file, and where each was read."""

    texts: dict[str, str]
    places: dict[str, str]

    def place(self, identifier: str) -> str:
        """`file:line` of a text."""
        return self.places[identifier]


def read_texts(folder: Path, name: str) -> Texts:
    """Read `corpus` or `queries` of a folder; none, a repeated id or an empty text is a FileFormatError."""
    files = _files(folder, name)
    found = Texts({}, {})
    for file in files:
        for place, row in read_rows(file):
            identifier = _string(row, "_id", place)
            if identifier in found.texts:
                raise FileFormatError(f"{place}: the id {identifier!r} is also that of {found.place(identifier)}")
            found.texts[identifier] = _text(row, place)
            found.places[identifier] = place
    if not found.texts:
        raise FileFormatError(f"{files[0]}: no texts in it; expected at least one line")
    return found


def read_judgements(folder: Path, *, documents: Collection[str], queries: Collection[str]) -> tuple[Grades, set[str]]:
    """Read `qrels`: -> (the test split's grades, ids of queries that only other splits judge)."""
    chosen, others = _split_files(folder / "qrels")
    grades: Grades = {}
    for file in chosen:
        for place, row in read_rows(file):
            query, document, grade = _judgement(row, place)
            for kind, identifier, known in (("query", query, queries), ("document", document, documents)):
                if identifier not in known:
                    raise FileFormatError(f"{place}: there is no {kind} with the id {identifier!r}")
            if document in grades.setdefault(query, {}):
                raise FileFormatError(f"{place}: {query!r} and {document!r} are judged a second time")
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
    """Every row of a file by its suffix, with its place; empty lines are passed over."""
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
    parquet = extras.need("pyarrow.parquet", wanted_for=f"reading {path.name}")
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # noqa: BLE001 - the library's own tree of errors
        raise FileFormatError(f"{path}: not a parquet file ({' '.join(str(error).split())[:120]})") from None
    yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))


def _files(folder: Path, name: str) -> list[Path]:
    single = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    files = single[:1] or sorted((folder / name).glob("*.parquet"))
    if not files:
        raise FileFormatError(
            f"{folder}: {name}.jsonl is missing; the layout is corpus.jsonl, queries.jsonl, qrels/test.tsv"
        )
    return files


def _split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files of the test split, files of other splits)."""
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    stems = {path.stem.partition("-")[0] for path in files}  # `test-00000-of-00001.parquet` is `test`
    if not stems:
        raise FileFormatError(f"{folder}: no test.tsv in it")
    if len(stems) > 1 and "test" not in stems:
        raise FileFormatError(f"{folder}: splits {', '.join(sorted(stems))}; expected test.tsv")
    wanted = "test" if "test" in stems else next(iter(stems))
    return (
        [path for path in files if path.stem.partition("-")[0] == wanted],
        [path for path in files if path.stem.partition("-")[0] != wanted],
    )


def _judgement(row: Row, place: str) -> tuple[str, str, int]:
    grade = _number(row.get("score", 1), place)
    if grade != int(grade) or grade < 0:
        raise FileFormatError(f"{place}: score={row['score']!r}: expected a whole number from 0")
    return _string(row, "query-id", place), _string(row, "corpus-id", place), int(grade)


def _string(row: Row, key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise FileFormatError(f"{place}: {key} is {value!r}; expected a string")
    return value


def _text(row: Row, place: str) -> str:
    title = row.get("title") or ""
    if not isinstance(title, str) or not isinstance(row.get("text"), str):
        raise FileFormatError(f"{place}: text is {row.get('text')!r:.40}, title {title!r:.40}; expected strings")
    text = f"{title} {row['text']}".strip() if title else str(row["text"])
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
