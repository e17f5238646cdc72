"""The torch engine on a CPU: its arithmetics against the oracle, and what a card may do wrong.

What all engines promise is tested with them (test_engines, test_adapters). Here, bounds are twice the worst 1 - cosine
to the oracle that was measured on the starter: bfloat16 7e-6, int8 6.6e-5 (docs/decisions).

Doors by which a card could be replaced by the processor without a word, each tested: no device named, a device named
with torch or with `auto`, a device named with another engine. Doors by which a card's fault could be a traceback:
opening it, loading onto it, computing on it.
"""

import platform
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny_gguf

from nestling.engine import registry
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import load_adapters
from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino.observer import Observer as OpenVINOObserver
from nestling.engine.protocol import Item, Resumable, Rows, plain
from nestling.engine.registry import load_engine
from nestling.engine.rotation import Rotation, misfit
from nestling.engine.torch import attention, choice, devices
from nestling.engine.torch.attention import Runs
from nestling.engine.torch.devices import Placement, place
from nestling.engine.torch.engine import Observer, TorchEngine
from nestling.engine.torch.failures import working
from nestling.engine.torch.products import INNER, lift
from nestling.engine.weights import tensor
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.spec import Pooling
from nestling.vectors import Floats, paired_cosine

CPU = place("cpu", threads=1)  # one thread: two would wait for each other on a busy machine
BOUNDS = {ArithmeticName.FLOAT32: 1e-7, ArithmeticName.BF16: 2e-5, ArithmeticName.INT8_ROWS: 1.4e-4}
TEXTS = (
    "Query: a", "Query: A beautiful sunset over the beach", "Passage: 海滩上美丽的日落", "Query: def add(a, b)",
    "Passage: " + "The lock is taken before the file is read. " * 12,
)  # fmt: skip


def random_ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, len(tiny_gguf.tokens()), length).astype(np.int32)


def loss(found: Floats, expected: Floats) -> float:
    return float((1 - paired_cosine(found, expected)).max())


@pytest.fixture
def engine(tiny_models: dict[str, Path]) -> Iterator[TorchEngine]:
    made = TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)
    yield made
    made.close()


@pytest.mark.parametrize("file_type", ["F16", "Q4_K_M"])
def test_the_starter_in_every_arithmetic(file_type: str) -> None:
    file = GGUFFile.open(local.resolve(f"starter-retrieval:{file_type}"))
    items = plain(Tokenizer.from_gguf(file).encode(TEXTS))
    expected = ReferenceEngine(file).pool(items)
    for arithmetic, bound in BOUNDS.items():
        made = TorchEngine(file, on=CPU, arithmetic=arithmetic)
        assert made.arithmetic is arithmetic
        assert loss(made.pool(items), expected) <= bound, arithmetic


@pytest.mark.parametrize("arithmetic", [ArithmeticName.BF16, ArithmeticName.INT8_ROWS])
def test_adapters_in_every_arithmetic(arithmetic: ArithmeticName) -> None:
    """Mixed in a batch."""
    base = local.resolve("starter-base:F16")
    oracle = Embedder.load(base, engine="reference")
    file = GGUFFile.open(base)
    made = TorchEngine(file, on=CPU, adapters=load_adapters(file), arithmetic=arithmetic)
    items, adapters = plain([random_ids(length, length) for length in (1, 5, 40, 90)]), [2, 0, 1, 2]
    expected = oracle.engine.pool(items, adapters=adapters)
    assert loss(made.pool(items, adapters=adapters), expected) <= BOUNDS[arithmetic]
    assert loss(oracle.engine.pool(items, adapters=[0] * 4), expected) > 0.01, "the adapters are told apart"


def test_int8_survives_outliers_that_the_rotation_spreads(tmp_path: Path) -> None:
    """Four channels a hundred times the others, as real decoders have them."""
    arrays = tiny_gguf.weights()
    outliers: dict[str, Any] = {}
    for layer in range(tiny_gguf.LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            weight = arrays[f"blk.{layer}.{name}.weight"].copy()
            weight[[3, 77, 130, 200]] *= 30
            outliers[f"blk__{layer}__{name}__weight"] = weight
    file = GGUFFile.open(tiny_gguf.write(tmp_path / "outliers.gguf", **outliers))
    items = plain([random_ids(length, length) for length in (3, 60)])
    made = TorchEngine(file, on=CPU, arithmetic=ArithmeticName.INT8_ROWS)
    assert loss(made.pool(items), ReferenceEngine(file).pool(items)) <= 10 * BOUNDS[ArithmeticName.INT8_ROWS]


def test_images_rows_and_positions(engine: TorchEngine, tiny_models: dict[str, Path]) -> None:
    """M-RoPE and rows that replace embeddings, beside a plain text; in int8 rows enter the rotated stream."""
    rng = np.random.default_rng(0)
    places = np.zeros(20, bool)
    places[4:10] = True
    rows = Rows(places, rng.standard_normal((6, tiny_gguf.HIDDEN)).astype(np.float32))
    positions = np.stack([np.arange(20), np.arange(20) // 2, np.arange(20) % 5]).astype(np.int64)
    items = [Item(random_ids(20), positions, rows), Item(random_ids(7)), Item(random_ids(20))]
    file = GGUFFile.open(tiny_models["F32"])
    expected = ReferenceEngine(file).pool(items)
    assert loss(engine.pool(items), expected) <= BOUNDS[ArithmeticName.FLOAT32]
    rounded = TorchEngine(file, on=CPU, arithmetic=ArithmeticName.INT8_ROWS)
    assert loss(rounded.pool(items), expected) <= 10 * BOUNDS[ArithmeticName.INT8_ROWS]
    narrow = Item(random_ids(3), rows=Rows(slice(0, 1), np.ones((1, 5), np.float32)))
    with pytest.raises(EngineError, match="256 dimensions"):
        engine.pool([narrow])


def test_a_long_text_goes_in_pieces(engine: TorchEngine, tiny_models: dict[str, Path]) -> None:
    items = plain([random_ids(131)])
    expected = ReferenceEngine(GGUFFile.open(tiny_models["F32"])).pool(items)
    for budget in (16, 131, 7):
        engine.token_budget = budget
        assert loss(engine.pool(items), expected) <= BOUNDS[ArithmeticName.FLOAT32]


def test_a_long_text_can_pause_after_every_layer(engine: TorchEngine, tiny_models: dict[str, Path]) -> None:
    """And others run meanwhile; a close is met at the next layer."""
    assert isinstance(engine, Resumable)
    item, other = Item(random_ids(90)), Item(random_ids(7))
    expected, alone, steps = engine.token_states([item])[0], engine.pool([other]), engine.steps(item)
    works = []
    while True:
        try:
            works.append(next(steps))
        except StopIteration as done:
            np.testing.assert_allclose(done.value, expected, atol=1e-5)
            break
        np.testing.assert_array_equal(engine.pool([other]), alone)
    shape = Hyperparameters.of(GGUFFile.open(tiny_models["F32"]))
    assert works == [45 * (1 + 90 * shape.hidden / shape.layer_weights)] * 2, "attention counts: half of all pairs"
    steps = engine.steps(item)
    next(steps)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(steps)


def test_a_vector_of_some_tokens(engine: TorchEngine, tiny_models: dict[str, Path]) -> None:
    items = [Item(random_ids(9), pooled=slice(2, 5)), Item(random_ids(9)), Item(random_ids(4), pooled=slice(1, 2))]
    file = GGUFFile.open(tiny_models["F32"])
    assert loss(engine.pool(items), ReferenceEngine(file).pool(items)) <= BOUNDS[ArithmeticName.FLOAT32]
    last = TorchEngine(file, on=CPU, pooling=Pooling.LAST)
    expected = ReferenceEngine(file, pooling=Pooling.LAST).pool(items)
    assert loss(last.pool(items), expected) <= BOUNDS[ArithmeticName.FLOAT32]


@pytest.mark.parametrize("arithmetic", [ArithmeticName.BF16, ArithmeticName.INT8_ROWS])
def test_one_product_at_a_time_is_held_in_float32(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, arithmetic: ArithmeticName
) -> None:
    """While a file is loaded: a card that holds the packed weights need not hold them in float32 too."""
    whole: list[tuple[str, weakref.ref[Floats]]] = []

    def watched(file: GGUFFile, name: str, *, threads: int) -> Floats:
        found = tensor(file, name, threads=threads).copy()
        if found.ndim > 1:
            alive = {other.rpartition(".")[0].rpartition(".")[0] for other, one in whole if one() is not None}
            assert len(alive) <= 1, alive
            assert sum(one() is not None for _, one in whole) <= 2, "of query, key and value"
            whole.append((name, weakref.ref(found)))
        return found

    monkeypatch.setattr("nestling.engine.torch.loading.tensor", watched)
    TorchEngine(GGUFFile.open(tiny_models["Q4_K_M"]), on=CPU, arithmetic=arithmetic)
    assert len(whole) == 1 + 7 * tiny_gguf.LAYERS


def test_every_tokens_state(engine: TorchEngine, tiny_models: dict[str, Path]) -> None:
    items = plain([random_ids(length, length) for length in (9, 1, 30)])
    expected = ReferenceEngine(GGUFFile.open(tiny_models["F32"])).token_states(items)
    for one, other in zip(engine.token_states(items), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # states of order one; float32 sums in another order


def test_late_chunking_and_profile_through_the_embedder() -> None:
    text = "The lock is taken before the file is read. " * 9
    ours, theirs = (
        Embedder.load("starter-retrieval:Q8_0", engine=name, device="cpu", profile=name == "torch")
        for name in ("torch", "reference")
    )
    spans = [(0, 40), (40, 200), (200, len(text))]
    found, expected = (one.encode_chunks(text, spans=spans).vectors for one in (ours, theirs))
    assert loss(found, expected) <= BOUNDS[ArithmeticName.FLOAT32]
    stages = ours.engine.profile()  # type: ignore[attr-defined]
    assert stages.keys() == {"embedding rows", "rest of the layers", "matrix products", "attention", "pool"}
    assert min(stages.values()) > 0


def test_a_profile_that_was_not_asked_for_is_an_error(engine: TorchEngine) -> None:
    with pytest.raises(EngineError, match="profile=True"):
        engine.profile()


def test_the_sums_of_an_importance_matrix(tiny_models: dict[str, Path]) -> None:
    file, texts = GGUFFile.open(tiny_models["F32"]), [random_ids(length, length).tolist() for length in (40, 9)]
    ours, theirs = Observer(file, on=CPU).collect(texts), OpenVINOObserver(file, threads=1).collect(texts)
    assert ours.keys() == theirs.keys()
    for name, (row, tokens) in ours.items():
        assert tokens == theirs[name][1] == 49
        np.testing.assert_allclose(row, theirs[name][0], rtol=1e-4)


# Attention.


@pytest.mark.parametrize("causal", [True, False])
def test_attention_keeps_items_apart(causal: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Equal neighbours go together, others by themselves; keys are shared by two query heads each."""
    lengths, rng = [5, 5, 5, 1, 9], np.random.default_rng(0)
    q, k, v = (rng.standard_normal((25, heads, 16)).astype(np.float32) for heads in (4, 2, 2))
    queries, keys, values = (torch.from_numpy(one) for one in (q, k, v))
    found = attention.attend(queries, keys, values, Runs.of(lengths, CPU.device), causal=causal).numpy()
    ends = np.cumsum(lengths)
    for start, stop in zip(ends - lengths, ends, strict=True):
        for head in range(4):
            scores = q[start:stop, head] @ k[start:stop, head // 2].T / 4
            scores[np.triu(np.ones_like(scores, bool), 1) & causal] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = shares / shares.sum(-1, keepdims=True) @ v[start:stop, head // 2]
            np.testing.assert_allclose(found[start:stop, head], mixed, atol=1e-5)


def test_variable_length_attention_is_taken_by_its_signature() -> None:
    def now(*tensors: int, window_size: tuple[int, int], enable_gqa: bool, num_splits: int) -> Any:
        return tensors, window_size, enable_gqa, num_splits

    def before(*tensors: int, window_size: tuple[int, int], enable_gqa: bool) -> Any:
        return tensors, window_size, enable_gqa

    def first(*_tensors: int, is_causal: bool) -> Any:
        return is_causal

    ours, older = attention.adapted(now), attention.adapted(before)
    assert ours is not None
    assert older is not None
    assert ours(1, 2, window_size=(-1, 0)) == ((1, 2), (-1, 0), True, 1)
    assert older(1, 2, window_size=(-1, 0)) == ((1, 2), (-1, 0), True)
    assert attention.adapted(first) is None
    assert attention.varlen() is not None, "this torch has it"


# The rotation and the choice.


def test_the_rotation_of_tensors_is_that_of_arrays() -> None:
    """One source for both; that it is its own inverse is shown for arrays (test_rotation)."""
    ours, theirs = Rotation(96, 32, lift(CPU.device)), Rotation(96, 32)
    rows, norm = np.random.default_rng(0).standard_normal((192, 96)).astype(np.float32), np.arange(96, dtype=np.float32)
    given, scales = torch.from_numpy(rows), torch.from_numpy(norm)
    pairs: list[tuple[Any, Floats]] = [
        (ours.enter(given), theirs.enter(rows)),
        (ours.leave(given), theirs.leave(rows)),
        (ours.inputs("attn_q", given, scales), theirs.inputs("attn_q", rows, norm)),
        (ours.inputs("attn_output", given, None), theirs.inputs("attn_output", rows, None)),
        (ours.outputs("attn_v", given), theirs.outputs("attn_v", rows)),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def shape_of(**changes: int) -> Hyperparameters:
    sizes: dict[str, Any] = {
        "layers": 1, "hidden": 256, "heads": 4, "kv_heads": 2, "feed_forward": 512, "rms_eps": 1e-6, "rope_theta": 1e6,
        "rope_sections": (), "context": 64, "vocabulary": 8,
    }  # fmt: skip
    return Hyperparameters(**sizes | changes)


def test_shapes_that_cannot_be_rotated_are_named() -> None:
    assert misfit(shape_of(), inner=INNER) is None
    assert Rotation.of(shape_of(hidden=1280, heads=20)) == Rotation(1280, 64)
    assert misfit(shape_of(feed_forward=520), inner=INNER) == "feed_forward_length 520 is not a multiple of 256"
    assert misfit(shape_of(hidden=272), inner=INNER) == "embedding_length 272 is not a multiple of 32"
    assert misfit(shape_of(heads=16, hidden=256), inner=INNER) == "head size 16 is not a multiple of 32"


CARD = SimpleNamespace(device=torch.device("cuda"), is_cpu=False, threads=1, wait=lambda: None)


@pytest.mark.parametrize(
    ("file_type", "arithmetic", "reason"),
    [("F32", "bf16", "float or Q8_0"), ("Q8_0", "bf16", "float or Q8_0"), ("Q4_K_M", "int8-rows", "trial")],
)
def test_what_a_card_computes_in(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, file_type: str, arithmetic: str, reason: str
) -> None:
    trial = choice.Choice(choice.int8(shape_of(), CPU), "by trial")
    monkeypatch.setattr(choice, "_OUTCOMES", {})
    monkeypatch.setattr(choice, "_faster", lambda *_: trial)
    found = choice.choose(GGUFFile.open(tiny_models[file_type]), CARD)  # type: ignore[arg-type]
    assert found.arithmetic.name == arithmetic
    assert reason in found.reason


def test_one_trial_decides_for_all_cards_of_a_kind(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials may end differently: replicas of a model would give different vectors, as would a reloaded engine."""
    file, trials = GGUFFile.open(tiny_models["Q4_K_M"]), iter([ArithmeticName.BF16, ArithmeticName.INT8_ROWS])
    monkeypatch.setattr(choice, "_OUTCOMES", {})
    monkeypatch.setattr(choice, "card_name", lambda device: "B" if device.index == 2 else "A")
    monkeypatch.setattr(choice, "int8", lambda *_, made=choice.int8: made(shape_of(), CPU))
    monkeypatch.setattr(
        choice, "_faster", lambda shape, on: choice.Choice(choice.forced(next(trials), shape, on).arithmetic, "trial")
    )
    cards = [SimpleNamespace(device=torch.device("cuda", index), is_cpu=False) for index in range(3)]
    found = [choice.choose(file, card) for card in (*cards, cards[0])]  # type: ignore[arg-type]
    assert [one.arithmetic.name for one in found] == ["bf16", "bf16", "int8-rows", "bf16"]
    assert {one.reason for one in found} == {"trial"}


@pytest.mark.parametrize(("int8_s", "bf16_s", "wins"), [(1.0, 2.0, "int8-rows"), (2.0, 1.0, "bf16")])
def test_the_faster_of_the_two_is_taken(
    monkeypatch: pytest.MonkeyPatch, int8_s: float, bf16_s: float, wins: str
) -> None:
    monkeypatch.setattr(choice, "int8", lambda *_, made=choice.int8: made(shape_of(), CPU))
    monkeypatch.setattr(choice, "_seconds", lambda one, *_: int8_s if one.name == "int8-rows" else bf16_s)
    found = choice._faster(shape_of(), CARD)  # type: ignore[arg-type]
    assert found.arithmetic.name == wins
    assert "2000.00 ms" in found.reason


def test_no_int8_is_said_why(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile.open(tiny_models["Q4_K_M"])
    other = SimpleNamespace(device=torch.device("mps"), is_cpu=False)
    assert "not for mps" in choice.choose(file, other).reason  # type: ignore[arg-type]
    monkeypatch.setattr(choice, "misfit", lambda *_, **__: "it is odd")
    assert choice.choose(file, CARD).reason == "no int8: it is odd"  # type: ignore[arg-type]
    monkeypatch.undo()

    def broken(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory.\nmore")

    monkeypatch.setattr(choice, "int8", broken)
    assert "(out of resource: shared memory)" in choice._faster(shape_of(), CARD).reason  # type: ignore[arg-type]


def test_the_trial_runs_what_it_times() -> None:
    counted = []
    assert choice.fastest(lambda: counted.append(1), CPU) >= 0
    assert len(counted) == choice.TRIALS + 1
    for arithmetic in (choice.floats(ArithmeticName.BF16), choice.int8(shape_of(), CPU)):
        assert choice._seconds(arithmetic, shape_of(), CPU) > 0


# What a card may do wrong.


def failing(errors: Sequence[Exception], then: Callable[..., Any]) -> Callable[..., Any]:
    left = list(errors)

    def run(*arguments: Any) -> Any:
        if left:
            raise left.pop(0)
        return then(*arguments)

    return run


def test_out_of_memory_halves_the_budget_once(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    items, budget = plain([random_ids(40)]), engine.token_budget
    expected = engine.pool(items)
    short = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    monkeypatch.setattr(engine, "_run", failing([short], engine._run))
    np.testing.assert_array_equal(engine.pool(items), expected)
    assert engine.token_budget == budget // 2
    monkeypatch.setattr(engine, "_run", failing([short], engine._run))
    with pytest.raises(EngineError, match=r"tiny-F32\.gguf: cpu: out of memory computing \(0 MiB in use\)$"):
        engine.pool(items)
    assert engine.token_budget == budget // 2
    np.testing.assert_array_equal(engine.pool(items), expected)


def test_twice_out_of_memory_is_one_line(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_run", failing([torch.OutOfMemoryError()] * 2, engine._run))
    with pytest.raises(EngineError, match="out of memory computing"):
        engine.pool(plain([random_ids(4)]))


def test_a_card_that_is_taken_away_is_one_line(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = torch.AcceleratorError("CUDA error: device unplugged.\nCompile with `TORCH_USE_CUDA_DSA`")
    monkeypatch.setattr(engine, "_run", failing([gone], engine._run))
    with pytest.raises(EngineError) as caught:
        engine.pool(plain([random_ids(4)]))
    assert str(caught.value).endswith("tiny-F32.gguf: cpu: computing: CUDA error: device unplugged")


def test_a_card_that_is_too_small_for_the_file_is_one_line(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nestling.engine.torch.loading.Loader.text_model", failing([torch.OutOfMemoryError("CUDA\nx")], lambda *_: None)
    )
    with pytest.raises(EngineError, match=r"out of memory loading \(0 MiB in use\)$"):
        TorchEngine(GGUFFile.open(tiny_models["F32"]), on=CPU)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "xpu", "mps"])
def test_a_card_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(EngineError, match=rf"^device='{name}': .*docs/gpu\.md says what to install$"):
        place(name, threads=1)


def test_no_card_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    old = RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")
    monkeypatch.setattr(torch.cuda, "init", failing([old], lambda: None))
    with pytest.raises(EngineError) as caught:
        place(None, threads=1)
    assert "driver on your system is too old (found version 11040);" in str(caught.value)
    assert "device='cpu'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_beyond_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match=r"device='cuda:2': expected one of cuda:0, cuda:1$"):
        place("cuda:2", threads=1)


def test_a_card_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(EngineError, match="Tesla T4 has no bfloat16 arithmetic; bfloat16 needs an NVIDIA card of"):
        place("cuda", threads=1)


def test_without_the_package_it_is_said_what_to_install(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("nestling.engine.torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"engine='torch' needs torch .* pip install 'nestling\[gpu\]'") as caught:
        load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.TORCH, device="cpu")
    assert caught.value.param == "engine"


def test_work_is_done_on_the_engines_own_card(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the thread's current device: on the second card of two its kernels could not see the data."""
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", current)
    second = Placement(torch.device("cuda:1"), 1)
    with working(Path("x.gguf"), second, "computing"):
        assert entered == [torch.device("cuda:1")]
    with working(Path("x.gguf"), CPU, "computing"):
        assert len(entered) == 1
    monkeypatch.setattr(engine, "_on", second)
    monkeypatch.setattr(engine, "_run", lambda *_: len(entered))
    assert engine.pool(plain([random_ids(3)])) == 2


# No card is replaced by the processor without a word.


def test_torch_without_a_card_does_not_take_the_processor(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match=r"no GPU: .*device='cpu' runs it on the processor"):
        load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.TORCH)


@pytest.mark.parametrize("name", [EngineName.AUTO, EngineName.TORCH])
def test_a_named_card_is_not_replaced(tiny_models: dict[str, Path], name: EngineName) -> None:
    with pytest.raises(EngineError, match="device='cuda:0'"):
        load_engine(GGUFFile.open(tiny_models["F32"]), name=name, device="cuda:0")


@pytest.mark.parametrize("name", [EngineName.OPENVINO, EngineName.LLAMACPP, EngineName.REFERENCE])
def test_a_card_for_an_engine_without_is_refused(tiny_models: dict[str, Path], name: EngineName) -> None:
    with pytest.raises(UsageError, match=f"device='cuda': the {name} engine runs on the cpu") as caught:
        load_engine(GGUFFile.open(tiny_models["F32"]), name=name, device="cuda")
    assert caught.value.param == "device"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:0,cuda:1", "", "CUDA"])
def test_what_is_no_device_is_refused(tiny_models: dict[str, Path], device: str) -> None:
    with pytest.raises(UsageError, match=r"expected cuda\[:N\], xpu\[:N\], mps or cpu"):
        load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.TORCH, device=device)


def test_auto_takes_a_card_that_is_there(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    monkeypatch.setattr(registry, "has_gpu", lambda: True)
    monkeypatch.setattr(devices, "_any_card", lambda: "cpu")
    found = load_engine(file, name=EngineName.AUTO)
    assert found.name == "torch"
    assert found.reason == "auto: a GPU is there; on cpu in float32: a CPU computes in float32"
    assert registry.preferred() == (EngineName.TORCH, registry.GPU_FOUND)
    assert load_engine(file, name=EngineName.AUTO, device="cpu").name == "openvino"


def test_torch_is_asked_for_a_card_only_where_a_driver_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(devices, "has_card", lambda: True)
    monkeypatch.setattr(registry, "_DRIVERS", (str(tmp_path / "none"),))
    assert not registry.has_gpu()
    monkeypatch.setattr(registry, "_DRIVERS", (str(tmp_path),))
    assert registry.has_gpu()
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    assert not registry.has_gpu()
