from pathlib import Path

import numpy as np
import pytest
from tests import tiny_gguf

from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.protocol import plain
from nestling.errors import BuildError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.pipeline.quantization.file_types import is_quantizable
from nestling.pipeline.quantization.imatrix import ColumnSums, ImportanceMatrix
from nestling.pipeline.quantization.plan import Mix, plan
from nestling.pipeline.quantization.quantize import quantize
from nestling.pipeline.quantization.search import search
from nestling.pipeline.quantization.search.probe import EMBEDDING, PerturbationProbe
from nestling.pipeline.quantization.search.search import Budget, Chooser, embedding_kept, requantized
from nestling.vectors import paired_cosine

T = QuantType
CHEAP = (T.Q8_0, T.Q6_K, T.Q4_K, T.Q3_K, T.Q2_K)
"""Types that ggml needs no time to prepare."""
TEXTS = [np.arange(5, 40, dtype=np.int32), np.arange(200, 60, -2, dtype=np.int32), np.array([7], np.int32)]


@pytest.fixture(scope="module")
def source(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["F32"]


@pytest.fixture(scope="module")
def matrix() -> ImportanceMatrix:
    rng = np.random.default_rng(5)
    shapes = {name: shape for name, shape in tiny_gguf.shapes().items() if is_quantizable(name, shape)}
    entries = {
        name: ColumnSums((rng.random(shape[-1]) + 0.1).astype(np.float32), 4)
        for name, shape in shapes.items()
        if name != EMBEDDING
    }
    return ImportanceMatrix(entries, ("words.txt",), 4, 512, "m.gguf")


@pytest.fixture(scope="module")
def chooser(source: Path, matrix: ImportanceMatrix, tmp_path_factory: pytest.TempPathFactory) -> Chooser:
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text("\n\n".join(f"The folder number {n} is locked while it is built." for n in range(16)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CANDIDATES", CHEAP)
        patch.setattr(search, "PROBE", T.Q4_K)
        patch.setattr(search, "TEXTS", 8)
        return Chooser.measure(source, spec=tiny_gguf.spec(), matrix=matrix, text=text, threads=1)


# The probe.


def test_the_tower_is_the_reference_engine(source: Path) -> None:
    file = GGUFFile.open(source)
    np.testing.assert_allclose(
        PerturbationProbe(file, TEXTS).original, ReferenceEngine(file).pool(plain(TEXTS)), atol=1e-5
    )


@pytest.mark.parametrize(
    "names", [[EMBEDDING], ["blk.0.attn_k.weight"], ["blk.1.ffn_up.weight", "blk.0.attn_q.weight"]]
)
def test_an_exchange_is_what_a_file_with_those_types_does(names: list[str], source: Path, tmp_path: Path) -> None:
    """Against a file in which these tensors really are Q2_K, run by the reference engine."""
    file = GGUFFile.open(source)
    probe = PerturbationProbe(file, TEXTS)
    changes = {name: requantized(probe.weights(name), T.Q2_K, None) for name in names}
    patterns = tuple((f"^{name}$", T.Q2_K) for name in names)
    quantize(source, out=tmp_path / "x.gguf", mix=Mix("F32", patterns))
    real = ReferenceEngine(GGUFFile.open(tmp_path / "x.gguf")).pool(plain(TEXTS))
    wanted = 1 - paired_cosine(real, ReferenceEngine(file).pool(plain(TEXTS))).mean()
    assert wanted > 1e-4
    assert probe.error(changes) == pytest.approx(wanted, rel=1e-2)
    assert probe.settle(changes) == pytest.approx(wanted, rel=1e-2)
    back = {name: probe.weights(name) for name in names}
    assert abs(probe.error(back)) < 1e-6, "with the original matrices put back there is no error"
    assert abs(probe.settle({})) < 1e-6


def test_a_large_model_is_read_anew_for_every_trial(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile.open(source)
    small = PerturbationProbe(file, TEXTS)
    monkeypatch.setattr("nestling.pipeline.quantization.search.probe.KEPT_BYTES", 1)
    large = PerturbationProbe(file, TEXTS)
    assert (small.keeps_weights, large.keeps_weights) == (True, False)
    np.testing.assert_array_equal(small.original, large.original)


# The choice.


def test_a_mix_fits_its_budget_to_a_percent_and_is_better_than_stock(chooser: Chooser, tmp_path: Path) -> None:
    stock = chooser.stock("Q3_K_M")
    chosen = chooser.choose(Budget(size_bytes=stock.size_bytes), trials=25)
    report = quantize(
        chooser.file.path, out=tmp_path / "mix.gguf", mix=chosen.recipe.mix(tiny_gguf.shapes(), chooser.matrix)
    )
    assert report.size_bytes == chosen.plan.size_bytes
    assert 0.98 * stock.size_bytes <= report.size_bytes <= stock.size_bytes  # in the tiny model a tensor is 3 %
    kinds = {head.name: head.kind for head in stock.tensors if head.name in chosen.recipe.types}
    assert chosen.recipe.error < chooser.trial.settle(kinds)
    assert (chosen.recipe.imatrix, chosen.checked > 3) == ("words.txt", True)
    assert chosen.correlation > 0.8


def test_bits_per_weight_are_those_of_the_tensors(chooser: Chooser) -> None:
    chosen = chooser.choose(Budget(bits_per_weight=4.5), trials=1)
    assert 4.3 < chosen.plan.bits_per_weight <= 4.5
    assert chosen.recipe.file_type in ("Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q4_K_M", "Q3_K_M")


def test_the_same_measurements_give_the_same_mix(chooser: Chooser) -> None:
    made = [chooser.choose(Budget(bits_per_weight=4), trials=15).recipe for _ in range(2)]
    assert made[0] == made[1]


def test_the_embedding_can_be_kept(chooser: Chooser) -> None:
    stock = chooser.stock("Q4_K_M")
    for keep, kind in ((embedding_kept(stock), T.Q6_K), (embedding_kept(T.Q2_K), T.Q2_K)):
        chosen = chooser.choose(Budget(size_bytes=stock.size_bytes), keep=keep, trials=1)
        assert chosen.recipe.types[EMBEDDING] is kind


def test_a_type_that_the_embedding_cannot_have_is_refused(chooser: Chooser) -> None:
    with pytest.raises(UsageError, match=r"keep_embedding=IQ1_S: expected one of Q8_0, Q6_K") as caught:
        chooser.choose(Budget(bits_per_weight=4), keep=embedding_kept(T.IQ1_S))
    assert caught.value.param == "keep_embedding"


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        (Budget(size_bytes=10_000), r"target_size=10,000: expected at least \d+,\d+,?\d*, the model's smallest mix"),
        (Budget(bits_per_weight=2.0), r"target_bpw=2\.0: expected at least 2\.\d+"),
    ],
)
def test_a_budget_that_no_mix_can_meet_is_refused(chooser: Chooser, budget: Budget, match: str) -> None:
    with pytest.raises(BuildError, match=match) as caught:
        chooser.choose(budget)
    assert "\n" not in str(caught.value)


def test_the_smallest_mix_named_in_the_refusal_can_be_had(chooser: Chooser) -> None:
    with pytest.raises(BuildError) as caught:
        chooser.choose(Budget(size_bytes=10_000))
    least = int(str(caught.value).split("at least ")[1].split(", ")[0].replace(",", ""))
    assert chooser.choose(Budget(size_bytes=least), trials=1).plan.size_bytes == least
    with pytest.raises(BuildError):
        chooser.choose(Budget(size_bytes=least - 1))


def test_a_quantized_source_is_refused(tiny_models: dict[str, Path], matrix: ImportanceMatrix) -> None:
    with pytest.raises(BuildError, match="choose a mix from the float file"):
        Chooser.measure(tiny_models["Q8_0"], spec=tiny_gguf.spec(), matrix=matrix, threads=1)


def test_the_plan_of_a_stock_type_has_the_matrix(chooser: Chooser, source: Path, matrix: ImportanceMatrix) -> None:
    assert chooser.stock("IQ2_M") == plan(GGUFFile.open(source), Mix("IQ2_M", imatrix=matrix))
