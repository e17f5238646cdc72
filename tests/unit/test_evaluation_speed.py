"""Speed with contenders that are told how long they take: turns, medians, warm-up, what is kept when one dies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation_samples import model, speed_results
from typer.testing import CliRunner

from nestling.cli import evaluate
from nestling.errors import EngineError, UsageError
from nestling.evaluation import results, speed, tables, texts, worker
from nestling.evaluation.results import ModelFacts, SpeedResult
from nestling.evaluation.settings import SpeedSettings
from nestling.evaluation.targets import Cell, Volley
from nestling.evaluation.worker import Pass, embed, peak_memory_bytes
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.embedder import Embedder


class FakeContender:
    """Takes a second a pass in the first round, then 0.25, 1, 0.5, ...; says when it was asked."""

    load_time_s, cells = 0.5, (Cell(0, 1),)

    def __init__(self, name: str, log: list[str], *, dies_after: int = 10**9) -> None:
        self.facts: ModelFacts = model(name, 8)
        self.engine, self._log, self._left, self._round = name, log, dies_after, 0
        self.seen: list[tuple[str, ...]] = []

    def run(self, batch: Sequence[str]) -> Pass:
        if not self._left:
            raise EngineError(f"{self.engine}: its process died (exit code -9)")
        self._left -= 1
        self._log.append(self.engine)
        self.seen.append(tuple(batch))
        seconds = (1, 0.25, 1, 0.5)[self._round % 4]
        return Pass(100, seconds, {"tokenize": seconds / 4, "forward": seconds / 2, "serialize": seconds / 4})

    def ask(self, cell: Cell, source: texts.TextSource, *, tokens: int, seconds: float) -> Volley:
        self._round += 1
        return Volley([10.0 * self._round, 10.0 * self._round + 1], 64, 0.5, {"queue": 0.125})

    def peak_memory_bytes(self) -> int | None:
        return 7 * 2**20

    def close(self) -> None:
        self._log.append(f"{self.engine} closed")


@pytest.fixture
def tokenizer(tiny_models: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile.open(tiny_models["F32"]))


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def sides(log: list[str], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[FakeContender]:
    found = [FakeContender("A", log), FakeContender("B", log)]
    monkeypatch.setattr(speed, "_makers", lambda *_: [lambda one=one: one for one in found])
    monkeypatch.setattr(speed, "_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    return found


def settings(out: Path, **more: Any) -> SpeedSettings:
    return SpeedSettings(out=out, lengths=(16, 32), rounds=3, pass_tokens=64, **more)


def test_all_sides_take_turns_on_the_same_new_texts(sides: list[FakeContender], log: list[str], tmp_path: Path) -> None:
    speed.measure(["x"], settings(tmp_path))
    buckets = 3
    assert log == (["A"] * buckets + ["B"] * buckets) * 4 + ["B closed", "A closed"]
    assert sides[0].seen == sides[1].seen
    assert len(set(sides[0].seen)) == len(sides[0].seen), "nothing is asked twice"


def test_more_sides_than_are_loaded_at_once_go_group_by_group(
    sides: list[FakeContender], log: list[str], tmp_path: Path
) -> None:
    found = speed.measure(["x"], settings(tmp_path, together=1))
    assert log == ["A"] * 12 + ["A closed"] + ["B"] * 12 + ["B closed"]
    assert [one.result.compared_with for one in found] == [[], []]


def test_medians_of_the_rounds_that_count(sides: list[FakeContender], tmp_path: Path) -> None:
    (first, _) = speed.measure(["x"], settings(tmp_path))
    result = first.result
    assert [bucket.name for bucket in result.buckets] == ["16", "32", "mixed"]
    for bucket in result.buckets:
        assert bucket.samples_s == [0.25, 1, 0.5]
        assert bucket.tokens_per_s == 200
        assert bucket.stages_s == {
            name: [s * part for s in (0.25, 1, 0.5)]
            for name, part in zip(worker.STAGES, (0.25, 0.5, 0.25), strict=True)
        }
    (latency,) = result.latencies
    assert latency.samples_ms == [20, 21, 30, 31, 40, 41]
    assert (latency.p50_ms, latency.tokens_per_s, latency.stages_s) == (30.5, 128, {"queue": 0.375})
    assert latency.p99_ms == pytest.approx(40.95)
    assert (result.load_time_s, result.peak_memory_bytes) == (0.5, 7 * 2**20)
    assert result.compared_with == ["toy-text-retrieval-B (B)"]
    assert result.load.idle
    assert results.read(first.path) == result


def test_a_contender_that_dies_leaves_what_was_measured(sides: list[FakeContender], tmp_path: Path) -> None:
    sides[1]._left = 3 + 3 + 2
    with pytest.raises(EngineError, match="its process died"):
        speed.measure(["x"], settings(tmp_path))
    found = {path.name: results.read(path) for path in tmp_path.iterdir()}
    whole, half = (found[f"speed-toy-text-retrieval-{name}-{name}.json"] for name in "AB")
    assert isinstance(whole, SpeedResult)
    assert isinstance(half, SpeedResult)
    assert [len(bucket.samples_s) for bucket in whole.buckets] == [2, 2, 2]
    assert [len(bucket.samples_s) for bucket in half.buckets] == [2, 2, 1]


def test_a_busy_machine_is_said(sides: list[FakeContender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (7.5, 0.0, 0.0))
    found = [one.result for one in speed.measure(["x"], settings(tmp_path))]
    assert not found[0].load.idle
    assert "not idle: load 7.5" in str(tables.load_warning(found))
    assert tables.load_warning(speed_results(["F16"])) is None


@pytest.mark.parametrize("wrong", [{"lengths": (0,)}, {"rounds": 0}, {"clients": (0,)}, {"cell_s": -1.0}])
def test_what_cannot_be_measured_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        SpeedSettings(out=tmp_path, **wrong)


def test_texts_have_about_their_tokens_and_are_never_alike(tokenizer: Tokenizer) -> None:
    source = texts.TextSource(tokenizer)
    buckets = source.buckets(2048, (16, 512))
    assert [(bucket.name, bucket.tokens, len(bucket.texts)) for bucket in buckets[:2]] == [
        ("16", 16, 128),
        ("512", 512, 4),
    ]
    for bucket in buckets[:2]:
        assert bucket.tokens is not None
        found = [len(ids) + texts._PREFIX_TOKENS for ids in tokenizer.encode(bucket.texts)]
        assert sum(found) / len(found) == pytest.approx(bucket.tokens, rel=0.1)
    mixed = [len(ids) for ids in tokenizer.encode(buckets[2].texts)]
    assert max(mixed) > 10 * min(mixed)
    assert sum(mixed) == pytest.approx(2048, rel=0.5)
    every = [text for bucket in [*buckets, *source.buckets(2048, (16, 512))] for text in bucket.texts]
    assert len({text.split()[0] for text in every}) == len(every), "no two begin alike"


def test_a_pass_is_timed_by_stage(tiny_models: dict[str, Path]) -> None:
    embedder = Embedder.load(tiny_models["F32"], engine="reference")
    found = embed(embedder, ["a cat", "the sea"])
    assert found.tokens == sum(map(len, embedder.tokenize(["a cat", "the sea"], prompt_name="passage")))
    assert set(found.stages_s) == set(worker.STAGES)
    assert sum(found.stages_s.values()) == pytest.approx(found.seconds)
    assert all(seconds > 0 for seconds in found.stages_s.values())


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_memory_bytes()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory_bytes() - before < 80 * 2**20
    assert peak_memory_bytes() > 64 * 2**20


def test_the_command_prints_and_warns(
    sides: list[FakeContender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    done = CliRunner().invoke(
        evaluate.app, ["speed", "x", "--rounds", "1", "-o", str(tmp_path)], catch_exceptions=False
    )
    text = " ".join(done.output.split())
    for part in (
        "Tokens per second by text length",
        "Time by stage",
        "Latency",
        "2 result files",
        "was not idle",
    ):
        assert part in text
    with pytest.raises(UsageError, match="expected a MODEL or --url"):
        CliRunner().invoke(evaluate.app, ["speed"], catch_exceptions=False)
