"""The multi-vector head: merged, written, read back, and refused where it does not belong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny, tiny_gguf
from tests.fakes import token_states

from nestling._util import files
from nestling.engine.protocol import plain
from nestling.errors import CheckpointError, FileFormatError, GGUFError, NestlingError, UsageError
from nestling.evaluation.verify import verify
from nestling.formats.card import Card
from nestling.formats.gguf import Field, TensorPlan, write_gguf
from nestling.formats.multivector_head import ARCHITECTURE, BIAS, WEIGHT, Projector, projector_path
from nestling.formats.quant_types import QuantType
from nestling.models import local, removal
from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.multivector import write_projector
from nestling.pipeline.pipeline import Pipeline
from nestling.spec import ModelSpec, Task

WIDTH = 16


def write_head(folder: Path, spec: ModelSpec | None = None, **changes: Any) -> Path:
    """A random head for `tests.tiny_gguf`'s model; `changes` are its tensors (`weight`, `bias`) and `architecture`."""
    spec = spec or tiny_gguf.spec()
    rng = np.random.default_rng(3)
    weight = changes.get("weight", rng.standard_normal((WIDTH, tiny_gguf.HIDDEN), np.float32))
    bias = changes.get("bias", rng.standard_normal(WIDTH, np.float32))
    metadata = {
        "general.architecture": Field.string(changes.get("architecture", ARCHITECTURE)),
        "nestling.spec": Field.string(spec.to_json()),
    }
    plans = [
        TensorPlan(name, array.shape, QuantType.F32, lambda array=array: [array])  # type: ignore[misc]
        for name, array in ((WEIGHT, weight), (BIAS, bias))
    ]
    path = projector_path(folder, family="tiny", task=tiny_gguf.spec().task)
    write_gguf(path, metadata, plans)
    return path


@pytest.mark.parametrize("task", Task)
def test_the_tasks_own_adapter_is_merged(small_checkpoint: Path, tmp_path: Path, task: Task) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    write_projector(checkpoint, task=task, out=tmp_path / "head.gguf", family="tiny")
    head = Projector.open(tmp_path / "head.gguf")
    pair = checkpoint.adapters[task]["multi_vector_projector"]
    scaling = checkpoint.adapter_config.scaling
    delta = scaling * pair.b.read_rows().astype(np.float64) @ pair.a.read_rows().astype(np.float64)
    assert np.abs(delta).max() > 1e-3
    np.testing.assert_allclose(head.weight, checkpoint.read_rows(WEIGHT) + delta, atol=1e-6)
    np.testing.assert_array_equal(head.bias, checkpoint.read_rows(BIAS))
    assert (head.spec.task, head.spec.source, head.width) == (task, checkpoint.source, tiny.PROJECTED)


def test_equal_checkpoints_give_equal_bytes(small_checkpoint: Path, tmp_path: Path) -> None:
    hashes = {
        write_projector(Checkpoint.open(small_checkpoint), task=Task.CODE, out=tmp_path / name, family="tiny")
        for name in ("a.gguf", "b.gguf")
    }
    assert len(hashes) == 1


def test_a_checkpoint_without_the_bias_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    del checkpoint.tensors[BIAS]
    with pytest.raises(CheckpointError, match=r"multi_vector_projector\.bias is missing"):
        write_projector(checkpoint, task=Task.CODE, out=tmp_path / "head.gguf", family="tiny")
    assert not list(tmp_path.iterdir())


def test_a_build_keeps_a_head_that_is_there_and_mends_one_that_is_not(small_checkpoint: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "tiny", 1)
    (made,) = pipeline.projectors([Task.CODE])
    assert made.fresh
    assert Card.read(made.path) == made.card
    assert made.path.name == "tiny-text-code-multivector.gguf"
    assert made.card.sha256 in (tmp_path / "SHA256SUMS").read_text()
    assert not pipeline.projectors([Task.CODE])[0].fresh
    made.path.write_bytes(made.path.read_bytes()[:-1] + b"x")
    assert pipeline.projectors([Task.CODE])[0].fresh


def test_token_vectors_are_the_formula(tmp_path: Path) -> None:
    model = Embedder.load(tiny_gguf.write(tmp_path / "m.gguf"), engine="reference")
    head = Projector.open(write_head(tmp_path))
    (rows,) = model.encode_tokens(["a the beach"], prompt_name="passage")
    (ids,) = model.tokenize(["a the beach"], prompt_name="passage")
    [states] = model.engine.token_states(plain([ids]))
    expected = states.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert rows.shape == (len(ids), WIDTH)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("engine", ["openvino", "llamacpp"])
def test_every_engine_gives_the_oracles_token_states(tiny_models: dict[str, Path], engine: str) -> None:
    """0.9999 for a float file, as for pooled vectors; one text longer than the smallest batch of either engine."""
    model, oracle = (Embedder.load(tiny_models["F32"], engine=name) for name in (engine, "reference"))
    ids = model.tokenize(["a", "the beach " * 5, "in an other the " * 200])
    found, expected = (token_states(one.engine, ids) for one in (model, oracle))
    for index, states in enumerate(expected):
        assert found[index].shape == states.shape == (len(ids[index]), tiny_gguf.HIDDEN)
        cosines = (found[index] * states).sum(1) / np.linalg.norm(states, axis=1) / np.linalg.norm(found[index], axis=1)
        assert cosines.min() > 0.9999, index
    pooled = model.pool(plain(ids))
    np.testing.assert_allclose(np.stack([found[index].mean(0) for index in range(3)]), pooled, atol=2e-3)
    model.close()


def test_no_texts_have_no_multivectors(tmp_path: Path) -> None:
    model = Embedder.load(tiny_gguf.write(tmp_path / "m.gguf"), engine="reference")
    write_head(tmp_path)
    assert model.encode_tokens([]) == []


def test_without_the_head_the_error_names_the_command_that_makes_it(tmp_path: Path) -> None:
    model = Embedder.load(tiny_gguf.write(tmp_path / "m.gguf"), engine="reference")
    with pytest.raises(UsageError, match="`nestling multivector CHECKPOINT --task retrieval --family tiny`"):
        model.encode_tokens(["a"])
    assert model.encode(["a"]).shape == (1, tiny_gguf.HIDDEN)


def test_a_head_in_the_familys_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    model = Embedder.load(tiny_gguf.write(tmp_path / "m.gguf"), engine="reference")
    local.family_folder("tiny").mkdir(parents=True)
    write_head(local.family_folder("tiny"))
    assert model.encode_tokens(["a"])[0].shape[1] == WIDTH


def changed(**values: Any) -> ModelSpec:
    return ModelSpec.from_json(json.dumps({**json.loads(tiny_gguf.spec().to_json()), **values}))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed(task="code"), "its task is code, this model's retrieval"),
        (changed(source="sha256:1"), "its checkpoint is sha256:1, this model's sha256:0"),
    ],
)
def test_a_head_of_another_model_is_refused(tmp_path: Path, other: ModelSpec, message: str) -> None:
    model = Embedder.load(tiny_gguf.write(tmp_path / "m.gguf"), engine="reference")
    write_head(tmp_path, other)
    with pytest.raises(FileFormatError, match=message):
        model.encode_tokens(["a"])


def test_a_published_file_takes_a_head_of_any_revision_of_its_checkpoint() -> None:
    def head(source: str) -> Projector:
        return Projector(np.ones((4, 8), np.float32), np.ones(4, np.float32), changed(source=source))

    head("org/name@abc").check_fits(Path("h.gguf"), changed(source="org/name"))
    for theirs, ours in (("org/name@abc", "org/name@def"), ("org/other@abc", "org/name"), ("", ""), ("a", "")):
        if theirs == ours:
            continue
        with pytest.raises(FileFormatError, match="checkpoint"):
            head(theirs).check_fits(Path("h.gguf"), changed(source=ours))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2vl"}, "architecture 'qwen2vl'"),
        ({"weight": np.ones((WIDTH, 8), np.float32)}, r"shape \(16, 8\)"),
        ({"bias": np.ones(WIDTH + 1, np.float32)}, r"shape \(16, 256\)"),
        ({"bias": np.ones((WIDTH, 2), np.float32)}, "expected F32 of rank 1"),
        ({"bias": np.full(WIDTH, np.nan, np.float32)}, "NaN or infinity"),
    ],
)
def test_an_unsound_head_is_refused_by_its_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFError, match=message):
        Projector.open(write_head(tmp_path, **changes))


def test_a_head_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_head(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GGUFError, match="past the end"):
        Projector.open(path)


def test_a_head_is_no_model(tmp_path: Path) -> None:
    path = write_head(tmp_path)
    with pytest.raises(NestlingError, match="a multi-vector head, not a model"):
        Embedder.load(path, engine="reference")


def test_verify_knows_a_head(tmp_path: Path) -> None:
    path = write_head(tmp_path)
    assert [(check.name, check.passed) for check in verify(path)] == [("structure", True), ("hash", True)]
    write_head(tmp_path, bias=np.full(WIDTH, np.inf, np.float32))
    assert [(check.name, check.passed) for check in verify(path)] == [("structure", False)]


def test_a_head_in_a_folder_is_not_listed_and_goes_with_the_last_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    folder = local.family_folder("tiny")
    folder.mkdir(parents=True)
    for quant in ("F32", "F16"):
        tiny_gguf.write(folder / f"tiny-text-retrieval-{quant}.gguf", quant)
    head = write_head(folder)
    assert {model.quant for model in local.available() if model.family == "tiny"} == {"F32", "F16"}
    removal.remove("tiny-retrieval:F16")
    assert head.exists()
    gone, _ = removal.remove("tiny-retrieval")
    assert str(head) in gone
    assert not head.exists()
