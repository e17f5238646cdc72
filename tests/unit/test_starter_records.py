"""`benchmarks.starter_records`: the order of steps, resuming, a failed step, and what is told of the figures."""

import json
import sys
from pathlib import Path

import pytest
from benchmarks import agreement, measuring, starter_figures, starter_records
from benchmarks.starter_card import renamed
from benchmarks.starter_records import Records, Step, steps


def writes(path: Path, *, code: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"open({str(path)!r}, 'a').write('x'); raise SystemExit({code})")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    (tmp_path / "results" / "starter").mkdir(parents=True)
    monkeypatch.setattr(starter_records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(starter_records, "REPORT", tmp_path / "report")
    return Records(tmp_path / "run", "tower 1")


def test_no_step_waits_for_a_later_one(tmp_path: Path) -> None:
    done = set[str]()
    for step in steps(sys.executable, tmp_path):
        assert set(step.needs) <= done
        assert step.name not in done
        done.add(step.name)


def test_a_failed_step_ends_what_needs_it_and_a_rerun_resumes(records: Records, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    every = [Step("one", writes(one), ()), Step("two", writes(two, code=3), ()), Step("three", writes(three), ("two",))]
    records.begin(every)
    records.run(every, [0])
    assert set(records.done) == {"one"}
    assert not three.exists()
    again = Records(records.folder, "tower 1")
    again.begin(every)
    again.run([*every[:1], Step("two", writes(two), ()), every[2]], [0, 0])
    assert set(again.done) == {"one", "two", "three"}
    assert (one.read_text(), two.read_text(), three.read_text()) == ("x", "xx", "x")


def test_another_tower_runs_again_what_sees(records: Records, tmp_path: Path) -> None:
    text, image = tmp_path / "text", tmp_path / "image"
    every = [Step("text", writes(text), ()), Step("image", writes(image), (), sees=True)]
    for tower in ("tower 1", "tower 1", "tower 2"):
        again = Records(records.folder, tower)
        again.begin(every)
        again.run(every, [0])
    assert (text.read_text(), image.read_text()) == ("x", "xx")


def test_old_results_are_kept_aside_and_only_those_of_models_removed(records: Records, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("starter/quality-a.json", "starter/speed-a.json", "kills.json"):
        (results / name).write_text("{}")
    records.begin([])
    assert sorted(path.name for path in records.before.rglob("*.json")) == [
        "kills.json", "quality-a.json", "speed-a.json",
    ]  # fmt: skip
    assert sorted(path.name for path in results.rglob("*.json")) == ["kills.json", "speed-a.json"]
    (results / "starter" / "quality-a.json").write_text("{}")
    Records(records.folder, "tower 2").begin([])
    assert (results / "starter" / "quality-a.json").exists(), "a rerun removes nothing"


def test_only_changed_figures_are_told(tmp_path: Path) -> None:
    def folder(name: str, value: float) -> Path:
        (tmp_path / name).mkdir()
        lowest = {"all": dict.fromkeys(agreement.PAIRS, 0.5) | {"openvino_llamacpp": value}}
        (tmp_path / name / "agreement.json").write_text(json.dumps({"lowest": lowest}))
        return tmp_path / name

    old, new = folder("old", 0.75), folder("new", 0.875)
    assert starter_figures.changes(old, new) == ["agreement, all, openvino_llamacpp: 0.75 -> 0.875"]
    assert starter_figures.changes(old, old) == []
    assert starter_figures.changes(tmp_path / "none", old)[0] == "agreement, all, openvino_llamacpp: none -> 0.75"


def test_the_recorded_results_have_figures() -> None:
    names = {name.partition(",")[0] for name in starter_figures.figures(measuring.RESULTS)}
    assert names >= {*starter_figures.READERS, "perlfaq-en", "emoji-names"}


def test_a_renewed_result_tells_where_the_rest_is_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    origin = {"command": "c", "commit": "1", "machine": {}}
    (tmp_path / "x.json").write_text(json.dumps(origin | {"speed": 1, "loss": 2}))
    for _ in range(2):
        found = json.loads(measuring.renew("x", {"loss": 3}).read_text())
        assert (found["speed"], found["loss"], found["earlier"]) == (1, 3, origin)


def test_the_batterys_checkpoints_have_no_places() -> None:
    gap = {"mean": 0.1, "low": 0.0, "high": 0.2}
    row = {"figures": {"/a/new": 3, "b": 1, "c": 2, "BM25": 0}, "differences": {"b": gap, "c": gap}, "name": "s"}
    found = renamed({"sets": [row], "summaries": [{"against": "b"}, {"against": "c"}]})
    assert found["sets"][0]["figures"] == {"this": 3, "first": 1, "second": 2, "BM25": 0}
    assert set(found["sets"][0]["differences"]) == {"first", "second"}
    assert [one["against"] for one in found["summaries"]] == ["first", "second"]
