"""Bulk jobs end to end with a tiny model: what is made, what is refused, what is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.command_line import nestling
from tests.corpora import contents, jsonl, parquet, rejects, result, rows, texts
from tests.fakes import FakeEngine
from tests.tiny_gguf import CONTEXT, HIDDEN

from nestling import bulk, vectors
from nestling.bulk import job as job_module
from nestling.bulk import manifest
from nestling.bulk.manifest import Log
from nestling.errors import BuildError, FileFormatError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.embedder import Embedder
from nestling.models.file_spec import spec_of

Make = Callable[..., bulk.Outcome]


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> str:
    return str(tiny_models["F32"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's tokenizer and an engine that answers at once; `tests/fault` and `tests/contract` have real ones."""
    tokenizers: dict[str, Tokenizer] = {}

    def load(reference: str | Path, **_options: object) -> Embedder:
        file = GGUFFile.open(Path(reference))
        tokenizer = tokenizers.get(str(reference)) or Tokenizer.from_gguf(file)
        return Embedder(spec_of(file), tokenizers.setdefault(str(reference), tokenizer), FakeEngine(HIDDEN))

    monkeypatch.setattr(Embedder, "load", load)


@pytest.fixture
def make(tmp_path: Path, model: str) -> Make:
    """Run a job with the tiny model; ten rows a shard."""

    def run(source: Path, out: str = "out", **changes: Any) -> bulk.Outcome:
        how = {name: changes.pop(name) for name in list(changes) if name in bulk.RunOptions.__dataclass_fields__}
        settings: dict[str, Any] = {"model": model, "backend": "reference", "shard_rows": 10, "dimensions": 32}
        what = bulk.JobSpec(**settings | changes)
        return bulk.run([str(source)], tmp_path / out, what, bulk.RunOptions(**how))

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return parquet(tmp_path / "corpus.parquet", rows(25))


def test_the_vectors_are_the_embedders(make: Make, corpus: Path, model: str, tmp_path: Path) -> None:
    outcome = make(corpus, keep=("n",))
    assert (outcome.rows, outcome.rejected, outcome.shards, outcome.shards_now) == (25, 0, 3, 3)
    found = result(tmp_path / "out")
    wanted = Embedder.load(model, engine="reference").encode_document(rows(25)["text"], truncate_dim=32)
    assert list(found) == rows(25)["id"]
    np.testing.assert_array_equal(np.stack(list(found.values())), wanted)
    table = pq.read_table(tmp_path / "out" / "shards")
    assert table.schema.names == ["id", "vector", "n"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float not null>[32]"
    assert table.column("n").to_pylist() == list(range(25))


PACKED = {
    "float": lambda v: v,
    "float16": lambda v: v.astype(np.float16),
    "int8": vectors.to_int8,
    "binary": vectors.to_ubinary,
}


@pytest.mark.parametrize("kind", PACKED)
def test_vector_types_and_their_search(make: Make, corpus: Path, model: str, tmp_path: Path, kind: str) -> None:
    make(corpus, out="plain")
    make(corpus, embedding_type=kind)
    plain, found = result(tmp_path / "plain"), result(tmp_path / "out")
    np.testing.assert_array_equal(np.stack(list(found.values())), PACKED[kind](np.stack(list(plain.values()))))
    query = Embedder.load(model, engine="reference").encode_query(["the river"], truncate_dim=32)[0]
    stored = np.stack(list(found.values()))
    rows = np.unpackbits(stored, -1) * 2.0 - 1 if kind == "binary" else stored
    wanted = vectors.cosine(query[None], rows.astype(np.float32))[0]
    hits = bulk.search(tmp_path / "out", "the river", top=4).hits
    order = np.argsort(-wanted, kind="stable")[:4]
    assert [hit.id for hit in hits] == [f"d{place}" for place in order]
    np.testing.assert_allclose([hit.score for hit in hits], wanted[order], atol=2e-3 if kind == "float16" else 1e-5)


def test_without_an_id_column_ids_are_places(make: Make, tmp_path: Path) -> None:
    make(parquet(tmp_path / "c.parquet", {"text": texts(3)}))
    assert list(result(tmp_path / "out")) == ["c.parquet#0", "c.parquet#1", "c.parquet#2"]


def test_whole_numbers_stay_ids(make: Make, tmp_path: Path) -> None:
    make(jsonl(tmp_path / "c.jsonl.gz", [{"id": 7, "text": "a"}, {"id": 8, "text": "b"}]))
    assert list(result(tmp_path / "out")) == [7, 8]


# Rows that cannot be embedded.


def test_rejects_have_reasons_and_nothing_is_lost(make: Make, tmp_path: Path) -> None:
    """Mixed types in a column, nulls, empty and too long texts, no UTF-8, repeated ids."""
    bad: list[Any] = [None, 5, ["x"], "", "  ", "a" * (CONTEXT + 1), "\ud800"]
    objects = [{"id": f"b{place}", "text": text} for place, text in enumerate(bad)]
    objects += [
        {"id": "g", "text": "good"},
        {"id": "g", "text": "again"},
        {"text": "no id"},
        {"id": "\udfff", "text": "x"},
    ]
    outcome = make(jsonl(tmp_path / "c.jsonl", objects), shard_rows=4)
    assert (outcome.rows, outcome.rejected) == (1, 10)
    assert list(result(tmp_path / "out")) == ["g"]
    found = rejects(tmp_path / "out")
    assert [row for _, row, _, _ in found] == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert {(file, one) for file, row, one, _ in found if row < 7} == {("c.jsonl", f"b{n}") for n in range(7)}
    reasons = [reason for *_, reason in found]
    said = [
        "the text is null", "expected a string, not int", "expected a string, not list", "the text is empty",
        "the text is empty", f"tokens, this model takes {CONTEXT}", "lone surrogate",
        "duplicate id, first at c.jsonl#7", "the id is null", "the id is not valid Unicode",
    ]  # fmt: skip
    assert all(words in reason for words, reason in zip(said, reasons, strict=True)), reasons


def test_truncate_cuts_instead(make: Make, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "c.jsonl", [{"text": "a" * (CONTEXT + 1)}])
    assert make(source, truncate=True).rejected == 0


def test_max_rejects_ends_the_job_and_a_larger_one_goes_on(make: Make, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "c.jsonl", [{"text": "" if n % 2 else "x"} for n in range(40)])
    with pytest.raises(BuildError, match=r"10 rows are rejected, max_rejects=9; .*rejects\.jsonl says why"):
        make(source, max_rejects=9)
    assert len(rejects(tmp_path / "out")) == 10
    assert make(source, max_rejects=20).rows == 20


def test_a_page_that_is_broken(make: Make, tmp_path: Path) -> None:
    """The footer is sound, so planning sees nothing; the rows that cannot be read are rejected on request."""
    parquet(tmp_path / "c" / "a.parquet", rows(20), group=10)
    parquet(tmp_path / "c" / "b.parquet", {"id": ["x"], "text": ["sound"], "n": [1]})
    path = tmp_path / "c" / "a.parquet"
    raw = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match=r"^a\.parquet: cannot be read"):
        make(tmp_path / "c")
    outcome = make(tmp_path / "c", skip_bad_files=True)
    assert (outcome.rows, outcome.rejected) == (11, 10)
    assert {reason[:24] for *_, reason in rejects(tmp_path / "out")} == {"a.parquet: cannot be rea"}


# Taking up again.


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies when so many shards are logged."""
    add, done = Log.add, list[None]()

    def dying(self: Log, one: Any) -> None:
        if len(done) == count:
            raise KeyboardInterrupt
        add(self, one)
        done.append(None)

    monkeypatch.setattr(Log, "add", dying)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_goes_on_and_ends_the_same(
    make: Make, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The shard that was written but not logged is adopted, not made again."""
    make(corpus, out="whole", keep=("n",))
    with monkeypatch.context() as patch:
        stop_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            make(corpus, keep=("n",))
    with (tmp_path / "out" / manifest.LOG).open("ab") as log:
        log.write(b'{"shard": "half')
    outcome = make(corpus, keep=("n",))
    assert outcome.shards_now == 3 - count - 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert make(corpus, keep=("n",)).shards_now == 0


def test_a_shard_that_is_gone_or_cut_is_made_again(make: Make, corpus: Path, tmp_path: Path) -> None:
    make(corpus)
    whole = contents(tmp_path / "out")
    first, second, _ = sorted((tmp_path / "out" / "shards").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    assert make(corpus).shards_now == 2
    assert contents(tmp_path / "out") == whole


def test_a_file_of_another_job_is_not_adopted(make: Make, corpus: Path, tmp_path: Path) -> None:
    make(corpus)
    make(corpus, out="other", prompt="query")
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / manifest.LOG).unlink()
    for mine, other in zip(*(sorted((tmp_path / out / "shards").iterdir()) for out in ("out", "other")), strict=True):
        mine.write_bytes(other.read_bytes())
    assert make(corpus).shards_now == 3
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dimensions": 64}, "dimensions=32, not 64"),
        ({"prompt": "query"}, "prompt='passage', not 'query'"),
        ({"embedding_type": "int8"}, "embedding_type='float', not 'int8'"),
        ({"keep": ("n",)}, r"keep=\[\], not \['n'\]"),
        ({"shard_rows": 5}, "shard_rows=10, not 5"),
        ({"truncate": True}, "truncate=False, not True"),
        ({"backend": "openvino"}, "backend='reference', not 'openvino'"),
    ],
)
def test_other_settings_are_refused(
    make: Make, corpus: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    make(corpus)
    before = contents(tmp_path / "out")
    with pytest.raises(BuildError, match=rf"out: holds a job with {said}; give it another folder"):
        make(corpus, **change)
    assert contents(tmp_path / "out") == before


def test_another_model_is_refused(make: Make, corpus: Path, tiny_models: dict[str, Path]) -> None:
    make(corpus)
    with pytest.raises(BuildError, match="holds a job with model_sha256="):
        make(corpus, model=str(tiny_models["Q8_0"]))


def test_a_changed_source_is_refused(make: Make, tmp_path: Path) -> None:
    source = tmp_path / "c"
    parquet(source / "a.parquet", rows(5))
    make(source)
    parquet(source / "b.parquet", {"text": ["x"]})
    with pytest.raises(BuildError, match=r"b\.parquet is not in the source of this job"):
        make(source)
    (source / "b.parquet").unlink()
    parquet(source / "a.parquet", rows(5, seed=1))
    with pytest.raises(BuildError, match=r"a\.parquet has changed since this job began"):
        make(source)
    (source / "a.parquet").rename(source / "c.parquet")
    with pytest.raises(BuildError, match=r"c\.parquet is not in the source"):
        make(source)


def test_a_folder_that_is_not_ours_is_refused(make: Make, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("mine")
    with pytest.raises(BuildError, match="exists and is not a job's folder"):
        make(corpus)
    assert [one.name for one in (tmp_path / "out").iterdir() if one.name[0] != "."] == ["letters.txt"]


@pytest.mark.parametrize("name", ["job.json.part", "duplicates.npy", "duplicates.npy.part", ".ids-x/1"])
def test_what_a_run_left_that_was_killed_while_planning(make: Make, corpus: Path, tmp_path: Path, name: str) -> None:
    make(corpus, out="whole")
    left = tmp_path / "out" / name
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    make(corpus)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_ids_of_several_kinds_are_text(make: Make, tmp_path: Path) -> None:
    values: list[Any] = [1, "two", True, 1 << 64, 2.0, 2.5]
    make(jsonl(tmp_path / "c.jsonl", [{"id": one, "text": f"text {one}"} for one in values]))
    assert list(result(tmp_path / "out")) == ["1", "two", "true", str(1 << 64), "2", "2.5"]
    assert rejects(tmp_path / "out") == []


def test_two_runs_at_once_are_refused(make: Make, corpus: Path, tmp_path: Path) -> None:
    with manifest.held(tmp_path / "out"), pytest.raises(BuildError, match="another run is at work here"):
        make(corpus)


def test_a_damaged_job_is_one_line(make: Make, corpus: Path, tmp_path: Path) -> None:
    make(corpus)
    (tmp_path / "out" / manifest.JOB).write_text('{"version": 1}')
    with pytest.raises(FileFormatError, match=r"job\.json: not a job of this version"):
        make(corpus)


def test_the_worker_wants_the_jobs_model(
    make: Make, corpus: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose file of the same name is another one must not mix it in."""
    setup = job_module._setup
    monkeypatch.setattr(job_module, "_setup", lambda *a: replace(setup(*a), model=str(tiny_models["F16"])))
    with pytest.raises(BuildError, match="the job's model file has"):
        make(corpus)


# Settings.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embedding_type": "int4"}, "embedding_type='int4': expected one of float, float16, int8, binary"),
        ({"backend": "auto"}, "expected the name of one engine"),
        ({"backend": "x"}, "engine='x'"),
        ({"arithmetic": "auto"}, "expected the name of one arithmetic"),
        ({"arithmetic": "int8"}, "arithmetic='int8': expected one of"),
        ({"arithmetic": "int8-rows"}, "the engine reference takes no arithmetic"),
        ({"shard_rows": 0}, "at least 1"),
        ({"keep": ("vector",)}, "has a column of this name already"),
        ({"keep": ("n", "n")}, "named twice"),
        ({"dimensions": 33}, "expected one of 32, 64, 128, 256"),
        ({"prompt": "x"}, "prompt_name='x'"),
        ({"workers": 0}, "at least 1"),
        ({"ray_address": "auto"}, "ray_address is for engine=ray"),
        ({"index": True}, "index is for sink=lance"),
    ],
)
def test_settings_that_cannot_be_honoured(make: Make, corpus: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(corpus, **change)


def test_progress_adds_up(corpus: Path, model: str, tmp_path: Path) -> None:
    told: list[bulk.Status] = []
    what = bulk.JobSpec(model, backend="reference", shard_rows=10)
    outcome = bulk.run([str(corpus)], tmp_path / "out", what, progress=told.append)
    assert (told[0].rows_done, told[0].remaining_s, told[0].tokens_per_s) == (0, None, 0.0)
    assert (told[-1].rows_done, told[-1].rows_total, told[-1].tokens) == (25, 25, outcome.tokens)
    assert told[-1].remaining_s == 0
    assert [one.rows_done for one in told] == sorted(one.rows_done for one in told)


# Search.


def test_search_of_a_part_and_of_nothing(
    make: Make, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            make(corpus, keep=("n", "text"))
    found = bulk.search(tmp_path / "out", "river", top=30)
    assert (len(found.hits), found.rows, found.rows_total) == (10, 10, 25)
    assert all(hit.kept["text"].startswith(f"{hit.kept['n']} ") for hit in found.hits)
    with pytest.raises(UsageError, match=r"not a job's folder: it has no job\.json"):
        bulk.search(tmp_path, "river")
    with pytest.raises(UsageError, match="top=0"):
        bulk.search(tmp_path / "out", "river", top=0)


def test_search_wants_the_jobs_model(make: Make, corpus: Path, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    make(corpus)
    with pytest.raises(BuildError, match="not the model file that"):
        bulk.search(tmp_path / "out", "x", model=str(tiny_models["Q8_0"]))


@pytest.mark.parametrize("prompt", ["raw", "query", "passage"])
def test_the_query_gets_the_prompt_of_its_side(make: Make, tmp_path: Path, prompt: str) -> None:
    """What was embedded raw or as a query finds itself exactly; a passage is another side."""
    make(jsonl(tmp_path / "c.jsonl", [{"text": "the river"}, {"text": "x"}]), prompt=prompt)
    best = bulk.search(tmp_path / "out", "the river").hits[0]
    assert (best.score > 1 - 1e-6) == (prompt != "passage")


# The command line.


def test_the_command(corpus: Path, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["-m", model, "--backend", "reference", "--keep", "n", "--shard-rows", "10"]
    arguments = ["bulk", corpus, "--out", out, *options]
    done = nestling(*map(str, arguments))
    assert done.code == 0, done.err
    assert "25 vectors in 3 shards, 0 rows rejected; this run: 3 shards" in done.out
    told = json.loads(nestling(*map(str, arguments), "--json").out)
    assert (told["rows"], told["shards_now"], told["skipped"]) == (25, 0, [])
    shown = nestling("search", out, "the river", "--top", "3").out.splitlines()
    hits = json.loads(nestling("search", out, "the river", "--top", "3", "--json").out)
    assert [list(hit) for hit in hits] == [["score", "id", "n"]] * 3
    assert [line.split()[2::2] for line in shown[-3:]] == [[hit["id"], str(hit["n"])] for hit in hits]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["--text-column", "body"],
            2,
            "nestling: text_column='body': corpus.parquet has the columns 'id', 'text', 'n'\n",
        ),
        (["--engine", "spark"], 2, "nestling: engine='spark': expected one of local, ray\n"),
        (["--sink", "csv"], 2, "nestling: sink='csv': expected one of parquet, lance\n"),
    ],
)
def test_the_command_says_what_is_wrong(
    corpus: Path, model: str, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = nestling("bulk", corpus, "--out", tmp_path / "out", "-m", model, *arguments)
    assert (done.code, done.out, done.err) == (code, "", said)


def test_durations() -> None:
    from nestling.cli.bulk import duration

    said = [duration(seconds) for seconds in (0.4, 59.6, 61, 3600 * 5 + 400, 86400 * 3 + 3600 * 4)]
    assert said == ["0 s", "1 min 0 s", "1 min 1 s", "5 h 6 min", "3 d 4 h"]
