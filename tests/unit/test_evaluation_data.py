"""Benchmarks from folders, files and by name; what is not sound is refused with file and line."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

from nestling._util.data import data_folder
from nestling.errors import FileFormatError, ModelNotFoundError, UsageError
from nestling.evaluation import data
from nestling.models.hub import datasets
from nestling.spec import Task

CORPUS = [{"_id": "d1", "title": "Cats", "text": "purr"}, {"_id": "d2", "text": "Dogs bark"}]
QUERIES = [{"_id": "q1", "text": "what purrs"}, {"_id": "q2", "text": "what barks"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\td1\t0\n"


def lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_bytes(lines(CORPUS))
    (tmp_path / "queries.jsonl").write_bytes(lines(QUERIES))
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    return tmp_path


def retrieval(name: str | Path) -> data.RetrievalSet:
    found = data.load(str(name))
    assert isinstance(found, data.RetrievalSet)
    return found


def test_a_folder_in_beir_layout(folder: Path) -> None:
    found = retrieval(folder)
    assert found.name == folder.name
    assert found.documents == ("Cats purr", "Dogs bark")
    assert found.query_ids == ("q1", "q2")
    assert found.relevant == {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}}


def test_queries_of_other_splits_are_left_out(folder: Path) -> None:
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert retrieval(folder).query_ids == ("q1",)


def test_the_only_split_there_is_taken(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert retrieval(folder).query_ids == ("q1", "q2")
    (folder / "qrels" / "train.tsv").write_text(QRELS)
    with pytest.raises(FileFormatError, match=r"splits dev, train: expected test.tsv"):
        data.load(str(folder))


def test_parquet_reads_as_json_lines_do(folder: Path) -> None:
    wanted = retrieval(folder)
    (folder / "corpus").mkdir()
    parquet.write_table(pa.Table.from_pylist(CORPUS), folder / "corpus" / "test-00000-of-00001.parquet")
    parquet.write_table(pa.Table.from_pylist(QUERIES), folder / "queries.parquet")
    rows = [{"query-id": "q1", "corpus-id": "d1"}, {"query-id": "q2", "corpus-id": "d2"}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "qrels" / "test-00000-of-00001.parquet")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (folder / name).unlink()
    found = retrieval(folder)
    assert (found.documents, found.queries) == (wanted.documents, wanted.queries)
    assert found.relevant == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_the_hash_is_that_of_the_contents(folder: Path, tmp_path: Path) -> None:
    first = retrieval(folder).sha256
    (folder / "corpus.jsonl").write_bytes(lines(CORPUS).replace(b"\n", b"\r\n\n"))
    assert retrieval(folder).sha256 == first
    (folder / "corpus.jsonl").write_bytes(lines(CORPUS).replace(b"purr", b"purrs"))
    assert retrieval(folder).sha256 != first


ENCODED, HEAD = lines(CORPUS), QRELS.encode()
UNJUDGED = lines([*QUERIES, {"_id": "q3", "text": "x"}])
BAD = {
    "empty corpus": ("corpus.jsonl", b"\n", "corpus.jsonl: no texts"),
    "not UTF-8": (
        "corpus.jsonl",
        ENCODED + b'{"_id": "d3", "text": "\xff"}',
        "corpus.jsonl: line 3 is not UTF-8 \\(its byte 24\\)",
    ),
    "not JSON": ("queries.jsonl", lines(QUERIES) + b"{", "queries.jsonl:3: not JSON"),
    "deep JSON": ("queries.jsonl", b"[" * 100_000, "queries.jsonl:1: not JSON"),
    "not an object": ("queries.jsonl", b"[1]", "queries.jsonl:1: expected a JSON object"),
    "number as id": ("corpus.jsonl", b'{"_id": 7, "text": "x"}', "corpus.jsonl:1: _id=7: expected a string"),
    "no id": ("corpus.jsonl", b'{"text": "x"}', "corpus.jsonl:1: _id=None: expected a string"),
    "no text": ("corpus.jsonl", b'{"_id": "d1"}', "corpus.jsonl:1: text is None"),
    "blank text": ("corpus.jsonl", b'{"_id": "d1", "text": " "}', "corpus.jsonl:1: the text is empty"),
    "twice": ("corpus.jsonl", lines(CORPUS[:1] * 2), "corpus.jsonl:2: duplicate id 'd1', also at .*corpus.jsonl:1"),
    "unjudged query": ("queries.jsonl", UNJUDGED, "queries.jsonl:3: the query 'q3' has no relevant document"),
    "only zeros": ("qrels/test.tsv", HEAD.replace(b"d1\t1", b"d1\t0"), "queries.jsonl:1: the query 'q1' has no"),
    "missing document": ("qrels/test.tsv", HEAD + b"q1\td9\t1", "test.tsv:5: unknown document id 'd9'"),
    "missing query": ("qrels/test.tsv", HEAD + b"q9\td1\t1", "test.tsv:5: unknown query id 'q9'"),
    "judged twice": ("qrels/test.tsv", HEAD + b"q1\td1\t1", "test.tsv:5: duplicate judgement of 'q1' and 'd1'"),
    "columns": ("qrels/test.tsv", HEAD + b"q1\td1", "test.tsv:5: 2 columns, the first line has 3"),
    "grade": ("qrels/test.tsv", HEAD + b"q1\td2\thigh", "test.tsv:5: score='high': expected a number"),
    "half a grade": ("qrels/test.tsv", HEAD + b"q1\td2\t0.5", "test.tsv:5: score='0.5': expected an integer"),
    "no header": ("qrels/test.tsv", b"q1\td1\t1\nq2\td2\t1\n", "test.tsv:2: query-id=None"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_sound_is_named_with_its_line(folder: Path, case: str) -> None:
    name, content, message = BAD[case]
    (folder / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        data.load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"), [("corpus.jsonl", "corpus.jsonl is missing"), ("qrels/test.tsv", "test.tsv is missing")]
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileFormatError, match=message):
        data.load(str(folder))


def test_a_file_that_is_not_parquet_is_refused(folder: Path) -> None:
    (folder / "corpus.jsonl").rename(folder / "corpus.parquet")
    with pytest.raises(FileFormatError, match=r"corpus.parquet: not a parquet file"):
        data.load(str(folder))


PAIRS = [("a cat", "a kitten", 0.9), ("a cat", "a bus", 0.1)]


def test_pairs_from_json_lines_and_tabs(tmp_path: Path) -> None:
    rows = [{"sentence1": left, "sentence2": right, "score": score} for left, right, score in PAIRS]
    (tmp_path / "sts.jsonl").write_bytes(lines(rows))
    (tmp_path / "sts.tsv").write_text("score\tsentence1\tsentence2\n0.9\ta cat\ta kitten\n0.1\ta cat\ta bus\n")
    found = [data.load(str(tmp_path / name)) for name in ("sts.jsonl", "sts.tsv")]
    assert found[0] == found[1] == data.PairSet("sts", ("a cat", "a cat"), ("a kitten", "a bus"), (0.9, 0.1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 pairs"),
        (
            "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t1\n",
            "2 pairs: expected pairs with at least two different scores",
        ),
        ("sentence1\tsentence2\tscore\na\tb\tnan\n", "sts.tsv:2: score='nan'"),
        ("sentence1\tsentence2\tscore\na\t \t1\n", "sts.tsv:2: sentence2=' '"),
    ],
)
def test_pairs_that_are_not_sound(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sts.tsv").write_text(content)
    with pytest.raises(FileFormatError, match=message):
        data.load(str(tmp_path / "sts.tsv"))


@pytest.mark.parametrize(
    ("name", "documents", "queries"),
    [
        ("perlfaq-en", 500, 50),
        ("code-docstring", 500, 50),
        ("xling-manpages", 500, 80),
        ("pages-en", 134, 134),
        ("emoji-names", 400, 800),
    ],
)
def test_the_sets_in_the_package(name: str, documents: int, queries: int) -> None:
    found = retrieval(name)
    assert (len(found.documents), len(found.queries), found.name) == (documents, queries, name)
    assert all(sum(grades.values()) == 1 for grades in found.relevant.values()), "one known item a query"
    folder = data_folder("sets", wanted_for="this test") / name
    notice = (folder / "LICENCE.md").read_text("utf-8")
    cited = re.findall(r"`(\.\./licences/[^`]+)`", notice)
    assert cited
    assert all((folder / one).is_file() for one in cited)


def test_each_task_has_a_set() -> None:
    assert {task: data.for_task(task) for task in Task} == {
        Task.RETRIEVAL: ["perlfaq-en", "xling-manpages"],
        Task.TEXT_MATCHING: ["xling-manpages"],
        Task.CODE: ["code-docstring"],
    }
    assert data.for_task(None) == list(data.SHIPPED)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("NanoSciFact", "zeta-alpha-ai/NanoSciFact"),
        ("nanofiqa", "zeta-alpha-ai/NanoFiQA2018"),
        ("NanoTouche2020", "zeta-alpha-ai/NanoTouche2020"),
        ("mteb/scifact", "mteb/scifact"),
        ("perlfaq", None),
        ("./mine", None),
    ],
)
def test_names_on_the_hub(name: str, repository: str | None) -> None:
    assert datasets.repository(name) == repository
    assert len(datasets.NANOBEIR) == 13


def test_a_hub_set_is_read_from_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def snapshot_download(name: str, **_: object) -> str:
        fetched.append(name)
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    found = retrieval("NanoSciFact")
    assert (fetched, found.name, found.tasks) == (["zeta-alpha-ai/NanoSciFact"], "NanoSciFact", (Task.RETRIEVAL,))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(ModelNotFoundError, match=r"NanoNQ: .* cannot be downloaded \(no route to host\)"):
        data.load("NanoNQ")


def test_what_is_not_installed_is_said_with_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "corpus.jsonl").rename(folder / "corpus.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"reading corpus.parquet needs pyarrow .* pip install 'nestling\[eval\]'"):
        data.load(str(folder))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelNotFoundError, match="xling-manpages, pages-en, emoji-names or a NanoBEIR set"):
        data.load("nope")
