"""The OpenVINO engine in every arithmetic against the oracle; a rotation must not be seen from outside.

Doors by which it could be seen, each tested: pooled vectors, token states (of which multi-vectors are made), rows that
replace embeddings (images) with M-RoPE positions, adapters mixed in a batch, a long text in prefill chunks through
groups of layers, the importance matrix. Bounds on 1 - cosine, for random weights of this size: float32 sums in another
order, bfloat16's 8 bits, int8 as for a quantized file (0.999 is the promise for those).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.lora import load_adapters
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.openvino import choice, processor
from nestling.engine.openvino import engine as openvino_engine
from nestling.engine.openvino.choice import ROTATED
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.observer import Observer
from nestling.engine.protocol import Item, Rows, plain
from nestling.formats.gguf import GGUFFile
from nestling.models import local
from nestling.models.embedder import Embedder
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize
from nestling.vectors import Floats, paired_cosine

BOUNDS = {
    ArithmeticName.FLOAT32: 1e-5,
    ArithmeticName.BF16: 1e-4,
    ArithmeticName.INT8_GROUPS: 1e-3,
    ArithmeticName.INT8_ROWS: 1e-3,
    ArithmeticName.INT8_MIXED: 1e-3,
}


def random_ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, len(tiny_gguf.tokens()), length).astype(np.int32)


def loss(found: Floats, expected: Floats) -> float:
    return float((1 - paired_cosine(found, expected)).max())


@pytest.fixture(params=BOUNDS)
def arithmetic(request: pytest.FixtureRequest) -> ArithmeticName:
    name: ArithmeticName = request.param
    return name


@pytest.fixture
def file(tiny_models: dict[str, Path]) -> GGUFFile:
    return GGUFFile.open(tiny_models["Q4_K_M"])


@pytest.fixture
def engine(file: GGUFFile, arithmetic: ArithmeticName) -> Iterator[OpenVINOEngine]:
    made = OpenVINOEngine(file, threads=1, arithmetic=arithmetic)
    assert made.arithmetic is arithmetic
    yield made
    made.close()


@pytest.mark.parametrize("file_type", ["F32", "F16", "Q8_0", "Q3_K_M"])
def test_every_file_type_runs_in_it(tiny_models: dict[str, Path], file_type: str, arithmetic: ArithmeticName) -> None:
    """What is stored as floats stays floats, rotated or not."""
    file, items = GGUFFile.open(tiny_models[file_type]), plain([random_ids(n, n) for n in (1, 9, 60)])
    made = OpenVINOEngine(file, threads=1, arithmetic=arithmetic)
    assert loss(made.pool(items), ReferenceEngine(file).pool(items)) <= BOUNDS[arithmetic]


def test_vectors_and_token_states(engine: OpenVINOEngine, file: GGUFFile, arithmetic: ArithmeticName) -> None:
    items, oracle = plain([random_ids(n, n) for n in (3, 1, 40)]), ReferenceEngine(file)
    assert loss(engine.pool(items), oracle.pool(items)) <= BOUNDS[arithmetic]
    for one, other in zip(engine.token_states(items), oracle.token_states(items), strict=True):
        assert loss(one, other) <= 5 * BOUNDS[arithmetic]  # a single token's, where errors do not average out


def test_rows_and_positions_of_images(engine: OpenVINOEngine, file: GGUFFile, arithmetic: ArithmeticName) -> None:
    places = np.zeros(20, bool)
    places[4:10] = True
    rows = Rows(places, np.random.default_rng(0).standard_normal((6, tiny_gguf.HIDDEN)).astype(np.float32))
    positions = np.stack([np.arange(20), np.arange(20) // 2, np.arange(20) % 5]).astype(np.int64)
    items = [Item(random_ids(20), positions, rows), Item(random_ids(7)), Item(random_ids(20))]
    assert loss(engine.pool(items), ReferenceEngine(file).pool(items)) <= BOUNDS[arithmetic]


def test_adapters_mixed_in_a_batch(arithmetic: ArithmeticName) -> None:
    base = local.resolve("starter-base:Q8_0")
    file, oracle = GGUFFile.open(base), Embedder.load(base, engine="reference").engine
    made = OpenVINOEngine(file, threads=1, adapters=load_adapters(file), arithmetic=arithmetic)
    items, chosen = plain([random_ids(n, n) for n in (1, 5, 40, 90)]), [2, 0, 1, 2]
    expected = oracle.pool(items, adapters=chosen)
    assert loss(made.pool(items, adapters=chosen), expected) <= BOUNDS[arithmetic]
    assert loss(oracle.pool(items, adapters=[0] * 4), expected) > 0.01, "the adapters are told apart"


def test_a_long_text_through_groups_of_layers(
    file: GGUFFile, arithmetic: ArithmeticName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "PAST_BYTES", 1)
    made = OpenVINOEngine(file, threads=1, arithmetic=arithmetic)
    made.token_budget = 32
    items = plain([random_ids(131)])
    assert loss(made.pool(items), ReferenceEngine(file).pool(items)) <= BOUNDS[arithmetic]


def outlying(path: Path) -> GGUFFile:
    """Norm scales that make four channels thirty times the others, as real decoders have them."""
    arrays, outliers = tiny_gguf.weights(), dict[str, Any]()
    for layer in range(tiny_gguf.LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            weight = arrays[f"blk.{layer}.{name}.weight"].copy()
            weight[[3, 77, 130, 200]] *= 30
            outliers[f"blk__{layer}__{name}__weight"] = weight
    return GGUFFile.open(tiny_gguf.write(path, **outliers))


@pytest.mark.parametrize("chosen", ROTATED)
def test_an_importance_matrix_is_of_the_files_own_channels(
    file: GGUFFile, chosen: ArithmeticName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file runs in."""
    ids = random_ids(40).tolist()
    expected = Observer(file, threads=1).collect([ids])
    monkeypatch.setitem(choice.RULES, processor.kind(), chosen)
    assert OpenVINOEngine(file, threads=1).arithmetic is chosen
    for name, (sums, tokens) in Observer(file, threads=1).collect([ids]).items():
        np.testing.assert_array_equal(sums, expected[name][0])
        assert tokens == len(ids)


@pytest.mark.parametrize("chosen", ROTATED)
def test_outliers_are_spread(tmp_path: Path, chosen: ArithmeticName) -> None:
    """Four channels thirty times the others cost rows no more than ten times what they cost without."""
    quantize(outlying(tmp_path / "F32.gguf").path, out=tmp_path / "q.gguf", mix=Mix("Q8_0"), threads=1)
    file, items = GGUFFile.open(tmp_path / "q.gguf"), plain([random_ids(n, n) for n in (3, 60)])
    made = OpenVINOEngine(file, threads=1, arithmetic=chosen)
    assert loss(made.pool(items), ReferenceEngine(file).pool(items)) <= 10 * BOUNDS[chosen]
