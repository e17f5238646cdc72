"""Sources, readers and plans of bulk jobs: which rows there are, wherever they begin."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import jsonl, packed, parquet, rows

from nestling.bulk import plan, sources
from nestling.bulk.duplicates import Ids
from nestling.bulk.plan import Plan, open_reader
from nestling.bulk.rows import START
from nestling.bulk.settings import JobSpec
from nestling.errors import FileFormatError, UsageError

WHAT = JobSpec("model", shard_rows=10)


def made(*source: Path | str, what: JobSpec = WHAT, folder: Path, **how: Any) -> Plan:
    return plan.make(sources.expand([str(one) for one in source]), what, folder=folder, **how)


# Which files.


def test_a_folder_a_pattern_and_a_file(tmp_path: Path) -> None:
    for name in ("b.parquet", "sub/a.parquet", "_tmp/x.parquet", ".y.parquet"):
        parquet(tmp_path / name, rows(1))
    jsonl(tmp_path / "c.jsonl.gz", [{"text": "x"}])
    (tmp_path / "readme.txt").write_text("no")
    assert [file.name for file in sources.expand([str(tmp_path)])] == ["b.parquet", "c.jsonl.gz", "sub/a.parquet"]
    assert [file.name for file in sources.expand([str(tmp_path / "*.parquet")])] == ["b.parquet"]
    assert [file.name for file in sources.expand([str(tmp_path / "**" / "a.parquet")])] == ["sub/a.parquet"]
    assert [file.name for file in sources.expand([str(tmp_path / "b.parquet")])] == ["b.parquet"]


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere", "no such file"), ("x.txt", "should end in .parquet"), ("*.csv", "no such file"), ("x://y", "x")],
)
def test_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str) -> None:
    (tmp_path / "x.txt").write_text("no")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"source='?.*{said}"):
        sources.expand([source])


def test_two_files_of_one_name_and_one_file_twice(tmp_path: Path) -> None:
    one, two = parquet(tmp_path / "a" / "x.parquet", rows(1)), parquet(tmp_path / "b" / "x.parquet", rows(1))
    with pytest.raises(UsageError, match=r"two files are named x\.parquet"):
        sources.expand([str(one), str(two)])
    with pytest.raises(UsageError, match="given twice"):
        sources.expand([str(one), str(one)])


def test_wherever_fsspec_reaches(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bulk-test/a.jsonl", b'{"text": "x"}\n')
    try:
        found = made("memory://bulk-test", folder=tmp_path)
    finally:
        memory.rm("/bulk-test", recursive=True)
    assert [(file.name, file.rows) for file in found.files] == [("a.jsonl", 1)]


def test_a_result_inside_its_source_is_no_source(tmp_path: Path) -> None:
    parquet(tmp_path / "out" / "shards" / "x.parquet", rows(1))
    with pytest.raises(UsageError, match="all of it lies in"):
        sources.apart(sources.expand([str(tmp_path)]), tmp_path / "out")
    parquet(tmp_path / "y.parquet", rows(1))
    assert [file.name for file in sources.apart(sources.expand([str(tmp_path)]), tmp_path / "out")] == ["y.parquet"]


# Which rows.


def written(folder: Path, kind: str, count: int) -> Path:
    columns = rows(count)
    objects = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = folder / f"c.{kind}"
    if kind == "parquet":
        return parquet(path, columns)
    if "jsonl" in kind:
        return jsonl(path, objects)
    lines = [",".join(columns), *(f'{row["id"]},"{row["text"]}\n""q"",",{row["n"]}' for row in objects)]
    path.write_bytes(packed("\n".join(lines).encode(), path.suffix))
    return path


KINDS = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "csv.zst")


@pytest.mark.parametrize("kind", KINDS)
def test_shards_in_any_order_are_the_rows(tmp_path: Path, kind: str) -> None:
    """Forwards, backwards and mixed: a reader finds each range wherever it stood before."""
    count = 43
    source = sources.expand([str(written(tmp_path, kind, count))])
    found = plan.make(source, JobSpec("m", shard_rows=10, keep=("n",)), folder=tmp_path)
    shards = found.shards()
    assert [(shard.start, shard.stop, shard.first) for shard in shards] == [
        (0, 10, 0), (10, 20, 10), (20, 30, 20), (30, 40, 30), (40, 43, 40),
    ]  # fmt: skip
    with closing(open_reader(source[0])) as reader:
        for number in (0, 1, 2, 3, 4, 2, 0, 3, 1, 4):
            shard = shards[number]
            got = reader.read(shard.start, shard.stop, shard.mark, found.columns)
            wanted = range(shard.start, shard.stop)
            assert got.ids == [f"d{n}" for n in wanted]
            assert [str(n) for n in wanted] == [str(n) for n in got.kept["n"].to_pylist()]
            assert all(str(text).startswith(f"{n} ") for n, text in zip(wanted, got.texts, strict=True))


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 15), st.integers(1, 9), st.permutations(range(6)))
def test_parquet_ranges(
    tmp_path_factory: pytest.TempPathFactory, count: int, group: int, shard_rows: int, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    source = sources.expand([str(parquet(folder / "x.parquet", rows(count), group=group))])
    found = plan.make(source, JobSpec("m", shard_rows=shard_rows), folder=folder)
    shards = found.shards()
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(count))
    with closing(open_reader(source[0])) as reader:
        for number in order:
            if number < len(shards):
                shard = shards[number]
                got = reader.read(shard.start, shard.stop, START, found.columns)
                assert got.ids == [f"d{n}" for n in range(shard.start, shard.stop)]


def test_names_are_stable_and_of_the_file(tmp_path: Path) -> None:
    """The same corpus elsewhere has the same names; another content has others."""
    names = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        parquet(tmp_path / folder / "x.parquet", rows(25, seed=seed))
        names.append([shard.name for shard in made(tmp_path / folder, folder=tmp_path).shards()])
    assert names[0] == names[1]
    assert len(set(names[0])) == 3
    assert not set(names[0]) & set(names[2])


def test_a_plan_goes_through_json(tmp_path: Path) -> None:
    columns = rows(25) | {"tags": [["a", "b"]] * 25}
    parquet(tmp_path / "x.parquet", columns)
    found = made(tmp_path, what=JobSpec("m", keep=("tags", "n")), folder=tmp_path)
    again = Plan.from_json(json.loads(json.dumps(found.to_json())), found.duplicates)
    assert again == found
    assert again.shards() == found.shards()


# Columns.


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"title": ["a"], "body": ["b"]})
    with pytest.raises(UsageError, match=r"text_column='text': x\.parquet has the columns 'title', 'body'"):
        made(path, folder=tmp_path)
    with pytest.raises(UsageError, match=r"id_column='key': x\.parquet has the columns 'title', 'body'"):
        made(path, what=JobSpec("m", text_column="body", id_column="key"), folder=tmp_path)
    with pytest.raises(UsageError, match="keep='url'"):
        made(path, what=JobSpec("m", text_column="body", keep=("url",)), folder=tmp_path)


def test_a_text_column_of_numbers(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": [1, 2]})
    with pytest.raises(FileFormatError, match=r"x\.parquet: column 'text' is int64, expected text"):
        made(path, folder=tmp_path)


def test_files_that_do_not_agree(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"text": ["a"], "id": [1], "n": [[1]]})
    parquet(tmp_path / "b.parquet", {"text": ["a"], "id": [2], "n": ["1"]})
    with pytest.raises(FileFormatError, match=r"b\.parquet: column 'n' is string, list<.*> in the files before it"):
        made(tmp_path, what=JobSpec("m", keep=("n",)), folder=tmp_path)
    found = made(tmp_path, what=JobSpec("m", keep=("n",)), folder=tmp_path, skip_bad_files=True)
    assert [file.name for file in found.files] == ["a.parquet"]
    assert found.skipped[0][0] == "b.parquet"
    assert made(tmp_path, folder=tmp_path).columns.id_type == pa.int64()


@pytest.mark.parametrize("kind", ["dictionary", "large_string"])
def test_other_ways_to_store_text(tmp_path: Path, kind: str) -> None:
    column = pa.array(["a", "b", "a"], pa.large_string() if kind == "large_string" else pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column
    source = sources.expand([str(parquet(tmp_path / "x.parquet", {"id": column, "text": column, "n": column}))])
    found = plan.make(source, JobSpec("m", keep=("n",)), folder=tmp_path)
    with closing(open_reader(source[0])) as reader:
        got = reader.read(0, 3, START, found.columns)
    assert got.texts == ["a", "b", "a"]
    assert (got.kept["n"].type, got.kept["n"].to_pylist()) == (pa.string(), ["a", "b", "a"])


def test_types_of_json_columns(tmp_path: Path) -> None:
    """They are those of all rows: what is neither one kind of number nor truth values alone is text."""
    objects = [{"text": "a", "i": 1, "f": 1, "b": True, "o": {"x": 1}, "m": 1, "n": None}, {"i": 2, "f": 0.5, "m": "x"}]
    source = sources.expand([str(jsonl(tmp_path / "x.jsonl", [*objects, {"text": 3, "i": -3, "b": None, "late": 1}]))])
    found = plan.make(source, JobSpec("m", keep=("i", "f", "b", "o", "m", "n", "late")), folder=tmp_path)
    with closing(open_reader(source[0])) as reader:
        got = reader.read(0, 3, START, found.columns)
    assert got.texts == ["a", None, 3]
    assert {name: column.to_pylist() for name, column in got.kept.items()} == {
        "i": [1, 2, -3], "f": [1.0, 0.5, None], "b": [True, None, None], "o": ['{"x": 1}', None, None],
        "m": ["1", "x", None], "n": [None, None, None], "late": [None, None, 1],
    }  # fmt: skip
    assert got.faults == {}


def test_rows_that_are_not_json_or_too_short(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n[1]\n{"text": \n  \n{"text": "b"}')
    (tmp_path / "y.csv").write_bytes(b"\xef\xbb\xbfid,text\n1,a\n\n2\n3,b,c\n4,\xff\n5,e")
    wanted = {
        "x.jsonl": ([0, 3], {1: "expected a JSON object", 2: "not JSON"}),
        "y.csv": ([0, 3, 4], {1: "1 fields", 2: "3 fields"}),
    }
    for name, (sound, said) in wanted.items():
        source = sources.expand([str(tmp_path / name)])
        found = plan.make(source, WHAT, folder=tmp_path)
        with closing(open_reader(source[0])) as reader:
            got = reader.read(0, found.rows, found.shards()[0].mark, found.columns)
        assert {place: reason[: len(said[place])] for place, reason in got.faults.items()} == said
        assert [place for place, text in enumerate(got.texts) if text is not None] == sound


# Files that cannot be read.


def broken(folder: Path, kind: str) -> Path:
    path = written(folder, kind, 400)
    path.write_bytes(path.read_bytes()[:-9])
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "jsonl.zst", "csv.gz"])
def test_a_truncated_file_is_named_and_left_out_on_request(tmp_path: Path, kind: str) -> None:
    broken(tmp_path, kind)
    parquet(tmp_path / "d.parquet", rows(5, seed=9))
    with pytest.raises(FileFormatError, match=rf"^c\.{kind}: cannot be read \(.*\); skip_bad_files leaves it out$"):
        made(tmp_path, folder=tmp_path)
    found = made(tmp_path, folder=tmp_path, skip_bad_files=True)
    assert [(file.name, file.rows) for file in found.files] == [("d.parquet", 5)]
    assert found.skipped[0][0] == f"c.{kind}"
    assert not len(found.duplicates), "the ids of a file that is left out count for nothing"


@pytest.mark.parametrize("content", [b"", b"text\n", b"\n\n"])
def test_an_empty_source(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"no rows in x\.csv|x\.csv has the columns"):
        made(tmp_path, folder=tmp_path)


def test_no_rows_in_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", {"text": pa.array([], pa.string())})
    with pytest.raises(UsageError, match=r"source: no rows in x\.parquet"):
        made(tmp_path, folder=tmp_path)


# Duplicates.


@settings(max_examples=20)
@given(st.lists(st.one_of(st.none(), st.integers(0, 9), st.sampled_from("abc")), max_size=40), st.integers(1, 9))
def test_duplicates_are_the_later_rows(ids: list[object], step: int) -> None:
    first: dict[str, int] = {}
    wanted = []
    for row, one in enumerate(ids):
        if one is not None and first.setdefault(str(one), row) != row:
            wanted.append((row, first[str(one)]))
    with closing(Ids(Path("/tmp"))) as seen:
        for start in range(0, len(ids), step):
            seen.add(ids[start : start + step])
        assert [tuple(pair) for pair in seen.duplicates().tolist()] == wanted


def test_repeats_by_shard(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"id": [1, 2, 3, 1], "text": list("abcd")})
    parquet(tmp_path / "b.parquet", {"id": [4, 2], "text": list("ef")})
    found = made(tmp_path, what=JobSpec("m", shard_rows=2), folder=tmp_path)
    assert [found.repeats(shard) for shard in found.shards()] == [{}, {1: 0}, {1: 1}]
    assert found.place(5) == "b.parquet#1"
    assert found.duplicates.dtype == np.int64
