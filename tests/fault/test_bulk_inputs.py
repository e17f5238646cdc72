"""Sources of bulk jobs as people have them: a row's fault is that row's, and no file vanishes without a word.

Kinds and their doors:
  files that a folder loses      endings in capitals, unknown endings, hidden names, earlier results, links, pipes
  files that differ              missing columns and keys, nulls, integers and floats, ids of several kinds, widths
  rows that ended the job        JSON keys without UTF-8, CSV records, Parquet text (also nested) that is not UTF-8
  ids that ended the job         floats, UUIDs, binary(16), uint64, another type with `id_column="none"`
  files that are no rows         JSON arrays, pretty JSON, CR alone, two columns of one name
Encodings are in `test_encodings`; kills and full disks in `test_bulk_faults`.
"""

import gzip
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command_line import nestling
from tests.corpora import jsonl, parquet, rejects, result, texts
from tests.fakes import FakeEngine
from tests.tiny_gguf import HIDDEN

from nestling import bulk
from nestling.bulk import job as job_module
from nestling.errors import FileFormatError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.embedder import Embedder
from nestling.models.file_spec import spec_of

Make = Callable[..., bulk.Outcome]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that answers at once."""

    def load(reference: str | Path, **_options: object) -> Embedder:
        file = GGUFFile.open(Path(reference))
        return Embedder(spec_of(file), Tokenizer.from_gguf(file), FakeEngine(HIDDEN))

    monkeypatch.setattr(Embedder, "load", load)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def make(source: Path, tmp_path: Path, tiny_models: dict[str, Path]) -> Make:
    """Run a job over the source folder, or what is given."""

    def run(given: Path | None = None, out: Path | None = None, **changes: Any) -> bulk.Outcome:
        how = {name: changes.pop(name) for name in list(changes) if name in bulk.RunOptions.__dataclass_fields__}
        spec = bulk.JobSpec(str(tiny_models["F32"]), backend="reference", **changes)
        return bulk.run([str(given or source)], out or tmp_path / "out", spec, bulk.RunOptions(**how))

    return run


def kept(tmp_path: Path, *names: str) -> dict[Any, tuple[Any, ...]]:
    """Id -> kept values."""
    table = pq.read_table(tmp_path / "out" / "shards").to_pylist()
    return {row["id"]: tuple(row[name] for name in names) for row in table}


# Files that a folder loses.


def test_endings_count_in_any_case(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(source / "A.JSONL", [{"text": "a"}])
    jsonl(source / "b.jsonl", [{"text": "b"}])
    (source / "C.CSV").write_text("text\nc\n")
    parquet(source / "D.Parquet", {"text": ["d"]})
    (source / "E.NdJson.GZ").write_bytes(gzip.compress(b'{"text": "e"}\n'))
    assert (make().rows, make(source / "A.JSONL", out=tmp_path / "one").rows) == (5, 1)


def test_what_is_left_out_is_counted_and_named(make: Make, source: Path, tiny_models: dict[str, Path]) -> None:
    jsonl(source / "a.jsonl", [{"text": "a"}])
    for number in range(7):
        (source / f"notes{number}.txt").write_text("x")
    (source / ".hidden.jsonl").write_text("x")
    skipped = make().skipped
    assert skipped == (
        "1 file whose name begins with . or _: .hidden.jsonl",
        "7 files of no kind that is read: notes0.txt, notes1.txt, notes2.txt, notes3.txt, notes4.txt and 2 more",
    )
    done = nestling("bulk", source, "--out", source.parent / "o2", "-m", tiny_models["F32"], "--backend", "reference")
    assert [f"skipped: {line}" for line in skipped] == done.err.splitlines()


def test_an_earlier_result_below_the_source_is_no_source(make: Make, source: Path) -> None:
    jsonl(source / "a.jsonl", [{"text": "a"}])
    make(out=source / "v1")
    outcome = make(out=source / "v2")
    assert outcome.rows == 1
    assert any("of an earlier job's result: v1/" in line for line in outcome.skipped)
    with pytest.raises(UsageError, match="of an earlier job's result"):
        make(source / "v1", out=source / "v3")


@pytest.mark.parametrize("kind", ["link", "pipe", "name", "folder"])
def test_what_cannot_be_read_is_said_and_left_out_on_request(make: Make, source: Path, kind: str) -> None:
    jsonl(source / "a.jsonl", [{"text": "a"}])
    path = Path(os.fsdecode(os.fsencode(source) + (b"/caf\xe9.jsonl" if kind == "name" else b"/b.jsonl")))
    if kind == "link":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.symlink_to(source.parent)
    else:
        path.write_text('{"text": "b"}\n')
    with pytest.raises(FileFormatError) as caught:
        make()
    assert str(caught.value).isascii()
    assert "\n" not in str(caught.value)
    outcome = make(skip_bad_files=True)
    assert (outcome.rows, len(outcome.skipped)) == (1, 1)
    assert make(skip_bad_files=True).rows == 1, "resumed"


def test_a_link_to_a_file_is_read(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "elsewhere.jsonl", [{"text": "a"}])
    (source / "b.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    assert make().rows == 1


@pytest.mark.parametrize("name", ["a::b.jsonl", "a[1].jsonl", "a*?.jsonl", "a b#c%20.jsonl", "ünï.jsonl"])
def test_odd_names_are_read(make: Make, source: Path, tmp_path: Path, name: str) -> None:
    jsonl(source / name, [{"text": "a"}])
    assert (make().rows, make(source / name, out=tmp_path / "one").rows) == (1, 1)


def test_zeros_behind_gzip_are_no_content(make: Make, source: Path) -> None:
    packed = gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n')
    (source / "a.jsonl.gz").write_bytes(packed + bytes(1000))
    assert make(shard_rows=1).rows == 2


# Files that differ.


def test_the_schema_is_that_of_all_files(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(source / "a.jsonl", [{"id": "a", "text": "a", "lang": "en", "n": 1}])
    jsonl(source / "b.jsonl", [{"id": "b", "text": "b"}])
    jsonl(source / "c.jsonl", [{"id": "c", "text": "c", "n": None}])
    jsonl(source / "d.jsonl", [{"id": "d", "text": "d", "n": 0.5}])
    assert (make(keep=("lang", "n")).rejected, kept(tmp_path, "lang", "n")) == (0, {
        "a": ("en", 1.0), "b": (None, None), "c": (None, None), "d": (None, 0.5),
    })  # fmt: skip


def test_a_key_that_comes_late_is_kept(make: Make, source: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": n, "text": f"text {n}"} for n in range(1001)]
    jsonl(source / "a.jsonl", [*rows, {"id": 1001, "text": "x", "tag": "late"}])
    assert make(keep=("tag",)).rows == 1002
    assert kept(tmp_path, "tag")[1001] == ("late",)


def test_parquet_types_unify(make: Make, source: Path, tmp_path: Path) -> None:
    first = {"id": [1], "text": ["a"], "n": pa.array([1], pa.int32()), "m": [1], "s": ["x"], "l": [[1]]}
    second = {"id": [2], "text": ["b"], "n": pa.array([1 << 40], pa.int64()), "m": [0.5], "s": [7], "l": [[0.5]]}
    parquet(source / "a.parquet", first)
    parquet(source / "b.parquet", second)
    parquet(source / "c.parquet", {"id": pa.array([3], pa.int16()), "text": ["c"], "n": pa.nulls(1)})
    make(keep=("n", "m", "s"))
    assert kept(tmp_path, "n", "m", "s") == {1: (1, 1.0, "x"), 2: (1 << 40, 0.5, "7"), 3: (None, None, None)}


def test_ids_of_several_kinds_are_text(make: Make, source: Path, tmp_path: Path) -> None:
    (source / "a.csv").write_text("id,text\n1,a\n")
    jsonl(source / "b.jsonl", [{"id": 2, "text": "b"}, {"id": 1, "text": "again"}])
    outcome = make()
    assert (outcome.rows, outcome.rejected, list(result(tmp_path / "out"))) == (2, 1, ["1", "2"])


def test_a_file_without_the_ids_of_the_others_is_asked_about(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(source / "a.jsonl", [{"id": 1, "text": "a"}])
    jsonl(source / "b.jsonl", [{"text": "b"}])
    with pytest.raises(UsageError, match=r"a\.jsonl has a column 'id', b\.jsonl has none; 'id' rejects .*'none'"):
        make()
    assert make(id_column="id", out=tmp_path / "ids").rejected == 1
    make(id_column="none")
    assert list(result(tmp_path / "out")) == ["a.jsonl#0", "b.jsonl#0"]


def test_a_kept_column_that_no_file_has(make: Make, source: Path) -> None:
    jsonl(source / "a.jsonl", [{"id": 1, " text": "x", "text": "a"}])
    with pytest.raises(UsageError, match=r"keep='b': a\.jsonl has the columns 'id', ' text', 'text'"):
        make(keep=("b",))


# Ids.

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
IDS: dict[str, tuple[pa.Array, list[Any]]] = {
    "whole floats": (pa.array([1.0, 2.0]), [1, 2]),
    "uint64": (pa.array([1, (1 << 64) - 1], pa.uint64()), [1, (1 << 64) - 1]),
    "binary(16)": (pa.array([UUID.bytes, bytes(16)], pa.binary(16)), [str(UUID), str(uuid.UUID(int=0))]),
    "uuid": (pa.array([UUID.bytes, bytes(16)], pa.uuid()), [str(UUID), str(uuid.UUID(int=0))]),
    "dictionary": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_that_can_be_used(make: Make, source: Path, tmp_path: Path, kind: str) -> None:
    column, wanted = IDS[kind]
    parquet(source / "a.parquet", {"id": column, "text": ["a", "b"]})
    assert (make().rejected, list(result(tmp_path / "out"))) == (0, wanted)


def test_a_float_that_is_no_whole_number_and_a_null_are_those_rows_faults(make: Make, source: Path) -> None:
    parquet(source / "a.parquet", {"id": [1.0, 2.5, None], "text": ["a", "b", "c"]})
    assert (make().rows, [reason for *_, reason in rejects(source.parent / "out")]) == (
        1, ["column 'id': '2.5' is not int64", "the id is null"],
    )  # fmt: skip


def test_large_whole_numbers_of_json_are_ids(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(source / "a.jsonl", [{"id": 1, "text": "a"}, {"id": (1 << 64) - 1, "text": "b"}])
    make()
    assert list(result(tmp_path / "out")) == [1, (1 << 64) - 1]


def test_ids_of_another_type_are_named_and_can_be_done_without(make: Make, source: Path, tmp_path: Path) -> None:
    parquet(source / "a.parquet", {"id": [[1], [2]], "text": ["a", "b"]})
    with pytest.raises(FileFormatError, match="ids are text, whole numbers or UUIDs; id_column=none numbers the rows"):
        make()
    make(id_column="none")
    assert list(result(tmp_path / "out")) == ["a.parquet#0", "a.parquet#1"]


# Rows that ended the job.


def test_a_key_without_utf_8_does_not_matter(make: Make, source: Path) -> None:
    (source / "k.jsonl").write_text('{"id":1,"text":"good"}\n{"id":2,"text":"also good","\\ud83d":1}\n')
    assert (make().rows, make().rejected) == (2, 0)


def test_a_csv_record_is_rejected_with_its_line(make: Make, source: Path, tmp_path: Path) -> None:
    lines = ["id,text", "1,a", '2,"b"x', '3,"c', 'd"', "4", '5,"e', "6,f", ""]
    (source / "a.csv").write_text("\n".join(lines))
    make(shard_rows=2)
    assert list(result(tmp_path / "out")) == ["1", "3", "6"]
    assert [reason for *_, reason in rejects(tmp_path / "out")] == [
        "not CSV: ',' expected after '\"' (line 3)", "1 fields, the header has 2 (line 6)",
        "not CSV: unexpected end of data (line 7)",
    ]  # fmt: skip


def test_a_json_line_is_rejected_with_its_line(make: Make, source: Path, tmp_path: Path) -> None:
    (source / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"text":\n{"text": "\xff"}\n[1]\n{"text": "b"}\n')
    make(shard_rows=2)
    found = [(row, reason) for _, row, _, reason in rejects(tmp_path / "out")]
    assert [row for row, _ in found] == [1, 2, 3]
    for line, (_, reason) in zip((3, 4, 5), found, strict=True):
        assert reason.endswith(f"(line {line})")
    assert "not UTF-8" in found[1][1]


def _bad_utf8() -> pa.Array:
    data = b"ok\xff\xfeok"
    return pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0\6\0\0\0"), pa.py_buffer(data)]
    )


@pytest.mark.parametrize("kind", ["kept", "list", "struct", "dictionary", "text", "id"])
def test_text_that_is_not_utf_8_is_that_rows_fault(make: Make, source: Path, tmp_path: Path, kind: str) -> None:
    bad, fine = _bad_utf8(), pa.array(["x", "y", "z"])
    nested = {
        "list": lambda: pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), bad),
        "struct": lambda: pa.StructArray.from_arrays([bad], ["inner"]),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), bad),
    }
    columns = {"id": bad if kind == "id" else fine, "text": bad if kind == "text" else pa.array(texts(3))}
    columns["k"] = nested.get(kind, lambda: bad if kind == "kept" else fine)()
    parquet(source / "a.parquet", columns)
    outcome = make(keep=("k",))
    # The good ids of the id column are "ok" twice, so one more row is rejected there.
    assert (outcome.rows, outcome.rejected) == ((1, 2) if kind == "id" else (2, 1)), rejects(tmp_path / "out")
    assert rejects(tmp_path / "out")[0][1] == 1
    assert "not UTF-8" in rejects(tmp_path / "out")[0][3]
    pq.read_table(tmp_path / "out" / "shards").to_pylist()


# Files that are no rows.


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'[{"text": "a"}, {"text": "b"}]', "no line is a JSON object"),
        ("a.jsonl", b'[\n {"text": "a"},\n {"text": "b"}\n]\n', "line 1 is not a JSON object"),
        ("a.jsonl", b'{\n "text": "a"\n}\n', "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "line 1 is not a JSON object; .* lines ending in LF"),
        ("a.csv", b"id,text\r1,a\r2,b\r", "lines end in CR alone; expected LF"),
        ("a.csv", b"id,text,text\n1,a,b\n", "duplicate column 'text'"),
    ],
)
def test_what_holds_no_rows_says_so(make: Make, source: Path, name: str, content: bytes, said: str) -> None:
    (source / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"^{name}: .*{said}"):
        make()


@pytest.mark.parametrize("column", ["text", "k", "id"])
def test_two_parquet_columns_of_one_name_are_one_line(make: Make, source: Path, column: str) -> None:
    fields = {"text": ["a"], "k": ["x"], "id": ["1"]}
    arrays = [*map(pa.array, fields.values()), pa.array(["again"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=[*fields, column]), source / "a.parquet")
    with pytest.raises(FileFormatError, match=rf"^a\.parquet: duplicate column '{column}'"):
        make(keep=("k",))


# LanceDB.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embedding_type": "int8"}, "expected vectors of type float, float16 or binary"),
        ({}, "at least 256 rows .* found 1"),
    ],
)
def test_an_index_that_cannot_be_is_refused_before_the_job(
    make: Make, source: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    def embedded(*_: object) -> None:
        raise AssertionError("embedded in vain")

    monkeypatch.setattr(job_module, "_embed", embedded)
    jsonl(source / "a.jsonl", [{"text": "a"}])
    with pytest.raises(UsageError, match=said):
        make(sink=bulk.Sink.LANCE, index=True, **change)


def test_a_plan_says_the_types(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(source / "a.jsonl", [{"id": 1, "text": "a", "n": 1}])
    make(keep=("n",))
    assert json.loads((tmp_path / "out" / "job.json").read_text())["source"]["columns"] == {"id": "int64", "n": "int64"}
