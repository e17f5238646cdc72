"""Every engine against the numpy oracle, and a text's vector against itself in other company.

Tolerances are the product's promises: 0.9999 for float files (float32 sums in another order differ by about 1e-6;
llama.cpp multiplies F16 and BF16 weights with activations rounded to that type), 0.999 for quantized ones, where
both engines may round activations to 8 bits. The oracle expands the same quantized file to float32. On a CPU the torch
engine computes in float32, whatever the file: 0.99999.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny_gguf
from tests.fakes import pool

from nestling._util.cpu import usable_threads
from nestling.engine import registry
from nestling.engine.batching import TOKEN_BUDGET
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.llamacpp import SMALLEST_BATCH
from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino import engine as openvino_engine
from nestling.engine.openvino.rectangles import Rectangles
from nestling.engine.protocol import Engine, Item, TokenIds
from nestling.engine.registry import load_engine
from nestling.engine.weights import embedding_rows, tensor
from nestling.errors import EngineError, GGUFError, UsageError
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import FLOAT_FILE_TYPES, QuantType
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local
from nestling.spec import Pooling
from nestling.vectors import Floats, paired_cosine

FLOAT, QUANTIZED, SAME, EXACT = 0.9999, 0.999, 0.9999, 0.99999
FAST = (EngineName.OPENVINO, EngineName.LLAMACPP, EngineName.TORCH)
FILE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q3_K_M")
LENGTHS = (1, 2, 5, 31, 60, SMALLEST_BATCH + 8)
THREADS = {EngineName.OPENVINO: 1, EngineName.LLAMACPP: 1, EngineName.TORCH: 1, EngineName.REFERENCE: 1}


Loaded = Callable[[EngineName, str], Engine]


def needed(name: EngineName, file_type: str) -> float:
    if name is EngineName.TORCH:
        return EXACT
    return FLOAT if file_type in FLOAT_FILE_TYPES else QUANTIZED


def random_ids(length: int, seed: int = 0) -> TokenIds:
    return np.random.default_rng(seed).integers(0, len(tiny_gguf.tokens()), length).astype(np.int32)


TEXTS = [random_ids(length, length) for length in LENGTHS]


def pooled(path: Path, name: EngineName, texts: Sequence[TokenIds]) -> Floats:
    engine = load_engine(GGUFFile.open(path), name=name, device="cpu", threads=THREADS[name])
    try:
        return pool(engine, texts)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine_of(tiny_models: dict[str, Path]) -> Iterator[Loaded]:
    """Each engine with each tiny model, loaded once."""
    loaded: dict[tuple[EngineName, str], Engine] = {}

    def get(name: EngineName, file_type: str) -> Engine:
        if (name, file_type) not in loaded:
            file = GGUFFile.open(tiny_models[file_type])
            loaded[name, file_type] = load_engine(file, name=name, device="cpu", threads=THREADS[name])
        return loaded[name, file_type]

    yield get
    for engine in loaded.values():
        engine.close()


@pytest.fixture(scope="module")
def oracle(engine_of: Loaded) -> dict[str, Floats]:
    return {kind: pool(engine_of(EngineName.REFERENCE, kind), TEXTS) for kind in FILE_TYPES}


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("name", FAST)
def test_every_file_type_agrees_with_the_oracle(
    engine_of: Loaded, oracle: dict[str, Floats], name: EngineName, file_type: str
) -> None:
    found = pool(engine_of(name, file_type), TEXTS)
    assert (found.dtype.name, found.shape) == ("float32", (len(TEXTS), tiny_gguf.HIDDEN))
    assert paired_cosine(found, oracle[file_type]).min() >= needed(name, file_type)


def test_the_texts_are_told_apart(oracle: dict[str, Floats]) -> None:
    """Or else the cosines above would prove nothing."""
    first = np.repeat(oracle["F32"][:1], len(TEXTS) - 1, axis=0)
    assert paired_cosine(first, oracle["F32"][1:]).max() < 0.9


def test_quantizing_changes_the_oracle_a_little(oracle: dict[str, Floats]) -> None:
    """The oracle runs the quantized weights, not the float ones."""
    for kind, nearest in (("Q8_0", 0.99999), ("Q3_K_M", 0.998)):
        cosines = paired_cosine(oracle[kind], oracle["F32"])
        assert cosines.min() > 0.9
        assert cosines.max() < nearest + 1e-5
        assert not np.array_equal(oracle[kind], oracle["F32"])


@pytest.mark.parametrize("file_type", ["F32", "Q8_0"])
def test_two_thousand_tokens(engine_of: Loaded, file_type: str) -> None:
    """Longer than a micro-batch of either engine, and than the oracle's blocks of rows."""
    texts = [random_ids(TOKEN_BUDGET + 52), random_ids(3)]
    expected = pool(engine_of(EngineName.REFERENCE, file_type), texts)
    for name in FAST:
        cosines = paired_cosine(pool(engine_of(name, file_type), texts), expected)
        assert cosines.min() >= needed(name, file_type), name


@pytest.mark.parametrize("file_type", ["F32", "Q8_0"])
def test_a_text_in_pieces_is_the_text_in_one(
    engine_of: Loaded, monkeypatch: pytest.MonkeyPatch, file_type: str
) -> None:
    """Cut by tokens, by the memory for scores, and (shorter than the budget) not at all."""
    texts = [random_ids(length, length) for length in (131, 16, 17, 1)]
    expected = pool(engine_of(EngineName.REFERENCE, file_type), texts)
    name = EngineName.OPENVINO
    engine = engine_of(name, file_type)
    for budget, score_bytes in ((16, 1 << 28), (64, 4 * tiny_gguf.HEADS * 64 * 70), (1 << 20, 1)):
        monkeypatch.setattr(engine, "token_budget", budget)
        monkeypatch.setattr(Rectangles, "score_bytes", score_bytes)
        assert paired_cosine(pool(engine, texts), expected).min() >= needed(name, file_type), budget


@pytest.mark.parametrize("name", [*FAST, EngineName.REFERENCE])
def test_the_last_tokens_state_where_that_is_the_pooling(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: EngineName
) -> None:
    monkeypatch.setattr(openvino_engine.OpenVINOEngine, "token_budget", 48)
    file, texts = GGUFFile.open(tiny_models["F32"]), [random_ids(length, length) for length in (3, 100, 17)]
    oracle = ReferenceEngine(file)
    expected = np.stack([oracle.states(Item(ids))[-1] for ids in texts])
    engine = load_engine(file, name=name, device="cpu", threads=1, pooling=Pooling.LAST)
    assert paired_cosine(pool(engine, texts), expected).min() >= FLOAT
    engine.close()


STARTER_TEXTS = (
    "Query: a", "Query: A beautiful sunset over the beach", "Passage: 海滩上美丽的日落",
    "Passage: " + "The lock is taken before the file is read. " * 12,
)  # fmt: skip


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "Q3_K_M"])  # float files: see tests/golden
def test_the_starter_agrees_with_the_oracle(file_type: str) -> None:
    path = local.resolve(f"starter-retrieval:{file_type}")
    ids = Tokenizer.from_gguf(GGUFFile.open(path)).encode(STARTER_TEXTS)
    expected = pooled(path, EngineName.REFERENCE, ids)
    for name in FAST:
        assert paired_cosine(pooled(path, name, ids), expected).min() >= needed(name, file_type), name


# A text's company.


@pytest.fixture(params=[(name, kind) for name in FAST for kind in ("F32", "Q8_0")], ids="-".join)
def engine(request: pytest.FixtureRequest, engine_of: Loaded) -> Engine:
    return engine_of(*request.param)


def test_a_vector_does_not_depend_on_its_company(engine: Engine) -> None:
    """Any texts, in any order, any number of times: the vector is the one that the text has alone."""
    texts = [random_ids(length, length) for length in (1, 1, 2, 3, 8, 20, 21, 60, 130)]
    alone = np.concatenate([engine.pool([Item(ids)]) for ids in texts])

    @settings(max_examples=12)
    @given(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=24))
    def check(places: list[int]) -> None:
        together = pool(engine, [texts[place] for place in places])
        assert paired_cosine(together, alone[places]).min() >= SAME

    check()


def test_a_batch_larger_than_the_budget(engine: Engine) -> None:
    texts = [random_ids(90, seed) for seed in range(TOKEN_BUDGET // 90 + 2)]
    alone = np.concatenate([engine.pool([Item(ids)]) for ids in texts[::8]])
    assert paired_cosine(pool(engine, texts)[::8], alone).min() >= SAME


def test_calls_from_several_threads(engine: Engine) -> None:
    texts = [random_ids(length, length) for length in (4, 17, 40)]
    alone = [engine.pool([Item(ids)]) for ids in texts]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(engine.pool, [[Item(ids)] for ids in texts * 3]))
    assert min(paired_cosine(one, alone[place % 3]).min() for place, one in enumerate(found)) >= SAME


def test_no_token_sees_what_follows(tiny_models: dict[str, Path]) -> None:
    oracle = ReferenceEngine(GGUFFile.open(tiny_models["F32"]))
    ids = random_ids(40)
    whole, part = oracle.states(Item(ids)), oracle.states(Item(ids[:25]))
    np.testing.assert_allclose(whole[:25], part, atol=1e-4)  # float32 sums over rows of other lengths
    assert paired_cosine(oracle.states(Item(ids[::-1]))[-1:], whole[:1])[0] < 0.999, "the last token sees the others"


# Loading.


@pytest.mark.parametrize("name", EngineName)
def test_engines_are_parsed(name: EngineName) -> None:
    assert EngineName.parse(name.value) is name


def test_another_engine_is_refused_with_the_right_ones() -> None:
    with pytest.raises(UsageError, match="auto, openvino, llamacpp, torch, reference") as caught:
        EngineName.parse("cuda")
    assert caught.value.param == "engine"


def test_no_threads_are_refused(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="threads=0"):
        load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.REFERENCE, threads=0)


def test_threads_are_those_that_this_process_may_use() -> None:
    assert usable_threads() >= 1


def test_auto_is_openvino(tiny_models: dict[str, Path]) -> None:
    engine = load_engine(GGUFFile.open(tiny_models["Q8_0"]), name=EngineName.AUTO)
    reason = "auto: the fastest engine on this processor; in int8-groups: groups of 32, the finest"
    assert (engine.name, engine.reason) == ("openvino", reason)


@pytest.mark.parametrize("name", [EngineName.OPENVINO, EngineName.LLAMACPP, EngineName.REFERENCE])
def test_an_engine_that_was_asked_for_says_so(tiny_models: dict[str, Path], name: EngineName) -> None:
    engine = load_engine(GGUFFile.open(tiny_models["F32"]), name=name, threads=1)
    arithmetic = "; in float32: a float file" if name is EngineName.OPENVINO else ""
    assert (engine.name, engine.reason) == (name.value, f"asked for by name{arithmetic}")
    engine.close()


def test_what_auto_would_take_is_known_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.preferred() == (EngineName.OPENVINO, registry.FASTEST)
    monkeypatch.setitem(sys.modules, "nestling.engine.openvino.runtime", None)
    assert registry.preferred()[0] is EngineName.LLAMACPP


def unavailable(error: Exception) -> Any:
    def load(*_arguments: object, **_named: object) -> Engine:
        raise error

    return load


@pytest.fixture(params=[ImportError("no openvino"), RuntimeError("no\nprocessor")], ids=["not installed", "fails"])
def without_openvino(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    registry._warn_once.cache_clear()
    monkeypatch.setattr(openvino_engine, "OpenVINOEngine", unavailable(request.param))


@pytest.mark.usefixtures("without_openvino")
def test_auto_falls_back_on_llama_cpp_and_says_so_once(
    tiny_models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        engine = load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.AUTO)
        assert engine.name == "llamacpp"
        assert re.search(r"^auto: openvino cannot be loaded: .*no (openvino|processor)", engine.reason)
        engine.close()
    [said] = caplog.messages
    assert re.fullmatch(r"engine llamacpp, which is slower, in place of openvino: .*no (openvino|processor)\)?", said)


@pytest.mark.usefixtures("without_openvino")
def test_openvino_by_name_is_never_another(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match=r"no (openvino|processor)"):
        load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.OPENVINO)


def test_without_any_engine_it_is_said_why(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "OpenVINOEngine", unavailable(RuntimeError("no processor")))
    monkeypatch.setattr(registry, "_llamacpp", unavailable(EngineError("xllamacpp is not installed")))
    with pytest.raises(EngineError, match=r"no engine loads it: .*no processor; xllamacpp is not installed"):
        load_engine(GGUFFile.open(tiny_models["F32"]), name=EngineName.AUTO)


def test_auto_does_not_hide_a_broken_file(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "x.gguf", output_norm__weight=np.ones(4, np.float32))
    with pytest.raises(GGUFError, match="output_norm"):
        load_engine(GGUFFile.open(tmp_path / "x.gguf"), name=EngineName.AUTO)


@pytest.mark.parametrize("name", [EngineName.OPENVINO, EngineName.TORCH])
def test_a_closed_engine_says_so(tiny_models: dict[str, Path], name: EngineName) -> None:
    engine = load_engine(GGUFFile.open(tiny_models["F32"]), name=name, device="cpu", threads=1)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.pool([Item(random_ids(3))])


def test_what_llama_cpp_does_not_load_is_an_engine_error(tmp_path: Path) -> None:
    fields = {key: field for key, field in tiny_gguf.metadata("F32").items() if not key.startswith("tokenizer.")}
    plans = [
        TensorPlan(name, array.shape, QuantType.F32, lambda array=array: [array])  # type: ignore[misc]
        for name, array in tiny_gguf.weights().items()
    ]
    write_gguf(tmp_path / "x.gguf", fields, plans)
    engine = load_engine(GGUFFile.open(tmp_path / "x.gguf"), name=EngineName.LLAMACPP, threads=1)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"x\.gguf: llama\.cpp does not load this file"):
            engine.pool([Item(random_ids(3))])


# The shape.


def test_the_shape_is_read(tiny_models: dict[str, Path]) -> None:
    shape = Hyperparameters.of(GGUFFile.open(tiny_models["Q8_0"]))
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2, 256, 4, 2, 64)
    assert (shape.context, shape.vocabulary) == (tiny_gguf.CONTEXT, len(tiny_gguf.tokens()))
    assert shape.rms_eps == np.float32(1e-6)


BROKEN_FIELDS: dict[str, tuple[str, Field, str]] = {
    "no heads": ("attention.head_count", Field.uint32(0), "head_count=0: expected a number above 0"),
    "a flag": ("block_count", Field.boolean(True), "block_count=True: expected an integer, found a bool"),  # noqa: FBT003
    "a text": ("embedding_length", Field.string("256"), "embedding_length='256': expected an integer, found a string"),
    "too many layers": ("block_count", Field.uint32(1 << 31), "block_count=2147483648: expected a number above 0"),
    "not a number": ("rope.freq_base", Field.float32(float("nan")), "freq_base=nan: expected a number above 0"),
    "infinite": ("rope.freq_base", Field.float32(float("inf")), "freq_base=inf: expected a number above 0"),
    "heads that do not divide": (
        "attention.head_count",
        Field.uint32(3),
        "3 heads, 2 key-value heads, hidden size 256: expected",
    ),
    "heads in uneven groups": (
        "attention.head_count_kv",
        Field.uint32(3),
        "4 heads, 3 key-value heads, hidden size 256: expected",
    ),
    "fewer key-value heads": ("attention.head_count_kv", Field.uint32(1), r"attn_k.weight: expected shape \(64, "),
    "one layer more": (
        "block_count",
        Field.uint32(3),
        r"blk\.2\.attn_norm\.weight: expected shape .* found no such tensor",
    ),
    "a wider feed-forward": ("feed_forward_length", Field.uint32(513), r"ffn_gate.weight: expected shape \(513, 256"),
}


@pytest.mark.parametrize(("key", "field", "message"), BROKEN_FIELDS.values(), ids=BROKEN_FIELDS)
def test_a_shape_that_does_not_fit_the_tensors_is_refused(
    tiny_models: dict[str, Path], key: str, field: Field, message: str
) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    file.metadata[f"qwen2vl.{key}"] = field
    with pytest.raises(GGUFError, match=message) as caught:
        Hyperparameters.of(file)
    assert str(caught.value).startswith(str(file.path))


def test_a_missing_embedding_is_refused(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    del file.tensors["token_embd.weight"]
    with pytest.raises(GGUFError, match="token_embd"):
        Hyperparameters.of(file)


# Weights and index arithmetic.


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_weights_are_expanded_as_gguf_py_does(tiny_models: dict[str, Path], file_type: str) -> None:
    file = GGUFFile.open(tiny_models[file_type])
    for theirs in gguf.GGUFReader(tiny_models[file_type]).tensors[:9]:
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        np.testing.assert_allclose(tensor(file, theirs.name, threads=2), expected, rtol=1e-6, atol=1e-7)


def test_embedding_rows_come_in_the_order_of_the_ids(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["Q4_K_M"])
    ids = np.array([7, 3, 7, 0], np.int32)
    np.testing.assert_array_equal(embedding_rows(file, ids), tensor(file, "token_embd.weight")[ids])


def test_a_profile_that_was_not_asked_for_is_an_error(tiny_models: dict[str, Path]) -> None:
    engine = openvino_engine.OpenVINOEngine(GGUFFile.open(tiny_models["Q8_0"]), threads=1)
    with pytest.raises(EngineError, match="profile=True"):
        engine.profile()
