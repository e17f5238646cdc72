"""Items that are more than token ids: rows in place of embeddings, M-RoPE positions, keys.

Doors by which rows and positions could be lost: each engine's pooled and token states, a batch with plain texts, an
item in pieces, an adapter-less and a sectionless model.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import tiny_gguf

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.llamacpp import LlamaCppEngine
from nestling.engine.numpy_reference import ReferenceEngine, turn
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.protocol import Item, Rows, plain
from nestling.engine.rotary import Rotary, positions
from nestling.engine.weights import embedding_rows
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.vectors import Floats, paired_cosine

SAME = 0.99999  # float32 sums in another order
LENGTH, GRID = 40, (5, 4)


@pytest.fixture
def file(tiny_models: dict[str, Path]) -> GGUFFile:
    return GGUFFile.open(tiny_models["F32"])


def image_item(rows: Floats | None = None, seed: int = 3) -> Item:
    """Text, then 20 tokens that stand for a grid of 5 x 4, then text: positions as Qwen2-VL counts them."""
    rng, (height, width) = np.random.default_rng(seed), GRID
    ids = rng.integers(0, len(tiny_gguf.tokens()), LENGTH).astype(np.int32)
    places = np.zeros(LENGTH, np.bool_)
    places[4 : 4 + height * width] = True
    before, after = np.tile(np.arange(4), (3, 1)), np.tile(np.arange(4 + height, LENGTH - 24 + 4 + height), (3, 1))
    grid = 4 + np.stack(
        [np.zeros(20, np.int64), np.repeat(np.arange(height), width), np.tile(np.arange(width), height)]
    )
    made: Floats = rng.standard_normal((height * width, tiny_gguf.HIDDEN), np.float32) * np.float32(0.1)
    return Item(
        ids, np.concatenate((before, grid, after), 1), Rows(places, rows if rows is not None else made), b"image"
    )


def test_openvino_gives_the_oracles_states_of_an_image_among_texts(file: GGUFFile) -> None:
    texts = plain([np.arange(n, dtype=np.int32) for n in (7, 50)])
    batch = [texts[0], image_item(), texts[1], image_item(seed=4)]
    oracle, engine = ReferenceEngine(file), OpenVINOEngine(file, threads=1)
    assert paired_cosine(engine.pool(batch), oracle.pool(batch)).min() >= SAME
    for found, expected in zip(engine.token_states(batch), oracle.token_states(batch), strict=True):
        assert paired_cosine(found, expected).min() >= SAME
    alone = np.concatenate([engine.pool([item]) for item in batch])
    assert paired_cosine(engine.pool(batch), alone).min() >= SAME


def test_an_image_in_pieces_is_the_image_whole(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ReferenceEngine(file).pool([image_item()])
    engine = OpenVINOEngine(file, threads=1)
    monkeypatch.setattr(engine, "token_budget", 16)
    assert paired_cosine(engine.pool([image_item()]), expected).min() >= SAME


@pytest.mark.parametrize("kind", [ReferenceEngine, lambda file: OpenVINOEngine(file, threads=1)])
def test_rows_that_are_the_embeddings_and_equal_positions_change_no_bit(file: GGUFFile, kind: object) -> None:
    assert callable(kind)
    ids = np.arange(30, dtype=np.int32)
    same = Item(ids, np.tile(np.arange(30), (3, 1)), Rows(slice(3, 9), embedding_rows(file, ids[3:9])))
    engine = kind(file)
    np.testing.assert_array_equal(engine.pool([same]), engine.pool([Item(ids)]))


def test_rows_and_positions_matter(file: GGUFFile) -> None:
    oracle, item = ReferenceEngine(file), image_item()
    others = [Item(item.ids), Item(item.ids, item.positions), Item(item.ids, None, item.rows)]
    assert paired_cosine(oracle.pool(others), np.repeat(oracle.pool([item]), 3, 0)).max() < 0.9999


def test_angles_by_section_are_those_of_the_formula(file: GGUFFile) -> None:
    """Frequency i of a head turns by the axis of its section: the table against the oracle's own angles."""
    shape, item = Hyperparameters.of(file), image_item()
    assert shape.rope_sections == (8, 12, 12)
    np.testing.assert_array_equal(Rotary(shape).cos_sin(positions([item])), np.concatenate(turn(item, shape), 1))


def test_a_model_without_sections_refuses_three_positions(tiny_models: dict[str, Path]) -> None:
    file = GGUFFile.open(tiny_models["F32"])
    del file.metadata["qwen2vl.rope.dimension_sections"]
    for engine in (ReferenceEngine(file), OpenVINOEngine(file, threads=1)):
        assert engine.pool([Item(np.arange(3, dtype=np.int32))]).any()
        with pytest.raises(EngineError, match=r"dimension_sections \[\]: expected three that sum to 32"):
            engine.pool([image_item()])


def test_llama_cpp_refuses_an_image_and_says_why(file: GGUFFile) -> None:
    engine = LlamaCppEngine(file, threads=1)
    for run in (engine.pool, engine.token_states):
        with pytest.raises(EngineError, match=r"takes token ids only.* engine=openvino"):
            run([Item(np.arange(3, dtype=np.int32)), image_item()])


def test_rows_of_another_width_are_refused(file: GGUFFile) -> None:
    with pytest.raises(EngineError, match=r"256 dimensions"):
        ReferenceEngine(file).pool([image_item(np.zeros((20, 8), np.float32))])


def test_parts_that_do_not_fit_are_refused() -> None:
    ids = np.arange(5, dtype=np.int32)
    with pytest.raises(EngineError, match=r"positions \(3, 4\): expected \(3, 5\)"):
        Item(ids, np.zeros((3, 4), np.int64))
    with pytest.raises(EngineError, match="2 rows for 3 tokens"):
        Item(ids, rows=Rows(slice(1, 4), np.zeros((2, 8), np.float32)))


def test_a_key_tells_items_of_equal_ids_apart() -> None:
    ids = np.arange(5, dtype=np.int32)
    every = [Item(ids), Item(ids, key=b"a"), Item(ids[:4], key=ids[4:].tobytes()), Item(ids[:4])]
    assert len({item.identity for item in every}) == len(every)
    assert Item(ids.copy()).identity == Item(ids).identity


def test_an_item_says_which_of_its_tokens_are_pooled(file: GGUFFile) -> None:
    plain_text, image = Item(np.arange(7, dtype=np.int32)), replace(image_item(), pooled=slice(3, 25))
    for engine in (ReferenceEngine(file), OpenVINOEngine(file, threads=1)):
        whole, part = engine.token_states([plain_text, image])
        expected = np.stack([whole.mean(0), part[3:25].mean(0)])
        assert paired_cosine(engine.pool([plain_text, image]), expected).min() >= SAME
