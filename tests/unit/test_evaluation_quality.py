"""Quality from models to result files: what is measured, kept, compared and refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evaluation_samples import DOCUMENTS, FakeEncoder, write_benchmark, write_pairs
from typer.testing import CliRunner

from nestling.cli import evaluate
from nestling.errors import EngineError, FileFormatError, NestlingError, UsageError
from nestling.evaluation import metrics, quality, results, scoring
from nestling.evaluation.encoders import open_encoder
from nestling.evaluation.metrics import Interval
from nestling.evaluation.quality import Measured
from nestling.evaluation.settings import QualitySettings as Settings
from nestling.models.embedder import Embedder
from nestling.spec import Role
from nestling.vectors import cosine


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_benchmark(tmp_path_factory.mktemp("sets") / "mine"))


@pytest.fixture
def settings(tmp_path: Path, benchmark: str) -> Settings:
    return Settings(out=tmp_path / "results", benchmarks=(benchmark,), engine="reference")


def measure(models: list[Path], settings: Settings) -> list[Measured]:
    return list(quality.measure([str(path) for path in models], settings))


@pytest.fixture
def two(tiny_models: dict[str, Path]) -> list[Path]:
    return [tiny_models["Q4_K_M"], tiny_models["F16"]]


def test_the_largest_file_comes_first_and_the_others_are_compared_with_it(two: list[Path], settings: Settings) -> None:
    base, other = measure(two, settings)
    assert [base.result.model.file_type, other.result.model.file_type] == ["F16", "Q4_K_M"]
    assert base.result.against is None
    assert other.result.against is not None
    assert other.result.against.model == base.result.model
    assert len(other.result.against.cosines) == len(DOCUMENTS) + 3
    assert 0.9 < other.result.against.cosine_lowest <= other.result.against.cosine_mean < 1
    assert other.result.against.differences["nDCG@10"] == scoring.difference(
        other.result.full, base.result.full, "nDCG@10"
    )


def test_the_scores_are_those_of_exact_search_with_the_models_vectors(two: list[Path], settings: Settings) -> None:
    (measured,) = measure(two[1:], settings)
    embedder = Embedder.load(two[1], engine="reference")
    for scores in measured.result.scores:
        width = scores.dimensions
        documents = embedder.encode_document(DOCUMENTS, truncate_dim=width)
        order = cosine(embedder.encode_query(["what purrs"], truncate_dim=width), documents)[0].argsort()[::-1]
        rank = order.tolist().index(0) + 1
        assert scores.samples["MRR@10"][0] == pytest.approx(1 / rank)
    assert [scores.dimensions for scores in measured.result.scores] == [32, 64, 128, 256]
    assert measured.result.query_ids == ["q1", "q2", "q3"]


def test_a_finished_result_is_kept_until_something_changes(two: list[Path], settings: Settings, benchmark: str) -> None:
    first = measure(two, settings)
    assert [one.fresh for one in first] == [True, True]
    again = measure(two, settings)
    assert [one.fresh for one in again] == [False, False]
    assert [one.result for one in again] == [one.result for one in first]
    assert [one.fresh for one in measure(two, replace(settings, dimensions=(64,)))] == [False, False], "it is in there"
    first[1].path.unlink()
    assert [one.fresh for one in measure(two, settings)] == [False, True], "the stopped run goes on"
    old = results.read(first[0].path)
    results.write(first[0].path, replace(old, model=replace(old.model, sha256="another file's")))
    assert [one.fresh for one in measure(two, settings)] == [True, False]


def test_a_reference_of_ones_own(two: list[Path], tiny_models: dict[str, Path], settings: Settings) -> None:
    found = measure(two[:1], replace(settings, against=str(tiny_models["F32"])))
    assert [one.result.model.file_type for one in found] == ["F32", "Q4_K_M"]
    assert found[1].result.against is not None
    assert found[1].result.against.model.file_type == "F32"


def test_a_reference_for_another_task_is_refused(two: list[Path], settings: Settings) -> None:
    with pytest.raises(UsageError, match="starter-text-code-F16: expected a model for retrieval, as tiny-F16 is"):
        measure(two[1:], replace(settings, against="starter-code:F16"))


def test_equal_vectors_differ_by_nothing(two: list[Path], settings: Settings) -> None:
    (measured,) = measure(two[1:], settings)
    assert scoring.difference(measured.result.full, measured.result.full, "nDCG@5") == Interval(0, 0, 0)


def test_dimensions_that_were_not_trained_are_refused(two: list[Path], settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"dimensions=100: expected one of 32, 64, 128, 256"):
        measure(two[1:], replace(settings, dimensions=(100,)))


def test_a_result_of_fewer_dimensions_does_not_stand_for_all(two: list[Path], settings: Settings) -> None:
    measure(two[1:], replace(settings, dimensions=(64,)))
    (measured,) = measure(two[1:], settings)
    assert measured.fresh
    assert len(measured.result.scores) == 4


def test_one_file_by_two_names_is_one_model_and_two_of_one_name_are_refused(
    two: list[Path], tiny_models: dict[str, Path], settings: Settings, tmp_path: Path, benchmark: str
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(two[1].read_bytes())
    assert len(measure([two[1], copy], settings)) == 1
    other = tmp_path / two[1].name
    other.write_bytes(tiny_models["F32"].read_bytes())
    with pytest.raises(UsageError, match="two of them are called tiny-F16-reference"):
        measure([two[1], other], settings)
    same = write_benchmark(tmp_path / "elsewhere" / "mine")
    with pytest.raises(UsageError, match="two of them are called mine"):
        measure(two, replace(settings, benchmarks=(benchmark, str(same))))


def test_asked_dimensions_and_the_full_width_are_measured(two: list[Path], settings: Settings) -> None:
    (measured,) = measure(two[1:], replace(settings, dimensions=(64,)))
    assert [scores.dimensions for scores in measured.result.scores] == [64, 256]


def test_an_unsound_benchmark_is_found_before_anything_is_measured(
    two: list[Path], settings: Settings, tmp_path: Path
) -> None:
    bad = write_benchmark(tmp_path / "bad")
    (bad / "corpus.jsonl").write_text("")
    with pytest.raises(FileFormatError, match="no texts"):
        measure(two, replace(settings, benchmarks=(*settings.benchmarks, str(bad))))
    assert not settings.out.exists()


def test_a_model_that_fails_in_the_middle_leaves_the_results_so_far(
    two: list[Path], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:

    def failing(reference: str, **options: object) -> object:
        if "Q4_K_M" not in reference:
            return open_encoder(reference, engine="reference")

        def answer(*_: object) -> object:
            raise EngineError("died")

        return FakeEncoder(answer)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "open_encoder", failing)
    with pytest.raises(EngineError, match="died"):
        measure(two, settings)
    assert [path.name for path in settings.out.iterdir()] == ["quality-tiny-F16-reference-mine.json"]


def test_pairs_are_compared_as_queries(
    two: list[Path], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "CORRELATION_RESAMPLES", 50)
    pairs = write_pairs(tmp_path / "sts.jsonl")
    base, other = measure(two, replace(settings, benchmarks=(str(pairs),)))
    full = base.result.full
    embedder = Embedder.load(two[1], engine="reference")
    left, right = (
        embedder.encode(["a cat"], prompt_name=Role.QUERY),
        embedder.encode(["a kitten"], prompt_name=Role.QUERY),
    )
    assert full.samples["cosine"][0] == pytest.approx(float(cosine(left, right)[0, 0]), abs=1e-6)
    assert full.samples["score"] == [5, 3, 0, 5, 1]
    assert -1 <= full.means["Spearman"].low <= full.means["Spearman"].mean <= full.means["Spearman"].high <= 1
    assert other.result.against is not None
    assert list(other.result.against.differences) == ["Spearman"]


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(evaluate.app, ["quality", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_the_command_prints_what_one_decides_by(two: list[Path], settings: Settings, benchmark: str) -> None:
    options = ("-b", benchmark, "-e", "reference", "-o", settings.out)
    text = run(*two, *options)
    for part in ("nDCG@10 [95%]", "recall@100", "compared with the reference", "by dimensions", "F16", "Q4_K_M"):
        assert part in text
    assert any(word in text for word in ("not significant", "equal", "worse", "better"))
    assert f"2 result files in {settings.out}" in text
    assert "2 of them kept from an earlier run" in run(*two, *options)
    first = json.loads(run(*two, *options, "--json"))[0]
    assert (first["kind"], first["model"]["file_type"], len(first["scores"])) == ("quality", "F16", 4)


def test_more_than_two_models_are_compared_with_each_other(
    two: list[Path], tiny_models: dict[str, Path], settings: Settings, benchmark: str
) -> None:
    text = run(*two, tiny_models["Q8_0"], "-b", benchmark, "-e", "reference", "-o", settings.out)
    assert "every pair" in text
    assert text.count("not significant") + text.count("equal") + text.count("worse") + text.count("better") >= 2 + 3


def test_a_result_file_that_is_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": "quality"}')
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NestlingError, match=r"a.json: not a result file \(quality.origin"):
        results.read(tmp_path / "a.json")
    with pytest.raises(NestlingError, match=r"b.json: not a result file"):
        results.read_all([tmp_path / "b.json"])
    with pytest.raises(NestlingError, match="no result files"):
        results.read_all([tmp_path / "empty"])
