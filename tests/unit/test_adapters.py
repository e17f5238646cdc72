"""One base with three adapters against three merged models, on a tiny random checkpoint whose tasks differ clearly."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.command_line import nestling
from tests.tiny import ALPHA, HIDDEN, RANK, SMALL_VOCAB, write_tiny_checkpoint

from nestling._util import files
from nestling.engine.lora import load_adapters
from nestling.engine.lora_lanes import LANES, StackedAdapters
from nestling.engine.observers import ObserverOptions
from nestling.engine.protocol import Item, Profiled, plain
from nestling.errors import FileFormatError, GGUFError, ModelNotFoundError, UsageError
from nestling.formats.card import Card
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.models import local
from nestling.models.compute import Work
from nestling.models.embedder import Embedder
from nestling.models.file_spec import spec_of
from nestling.models.local import ModelReference
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.pipeline.quantization import calibration
from nestling.spec import Task, adapter_path
from nestling.vectors import Floats, paired_cosine

KINDS = ("F32", "Q8_0")
EXACT = 0.99999
"""The promise for float32, where only sums are taken in another order."""
LENGTHS = (1, 3, 17, 60, 130)
ENGINES = ("openvino", "reference", "llamacpp", "torch")


def pipeline(checkpoint: Path, folder: Path, **more: Any) -> Pipeline:
    return Pipeline(Checkpoint.open(checkpoint), folder, "small", 1, **more)


@pytest.fixture(scope="module")
def folder(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and adapters beside merged models; never changed."""
    path = tmp_path_factory.mktemp("adapted")
    pipeline(small_checkpoint, path).build_base(KINDS)
    pipeline(small_checkpoint, path).build(list(Task), KINDS)
    return path


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the F32 base and its adapters."""
    for path in (base_path(folder), *(adapter_path(folder, task) for task in Task)):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def base_path(folder: Path, kind: str = "F32") -> Path:
    return model_path(folder, family="small", task=None, file_type=kind)


def texts(vocabulary: int = SMALL_VOCAB - 16) -> list[Any]:
    return [np.random.default_rng(n).integers(0, vocabulary, n).astype(np.int32) for n in LENGTHS]


def merged(folder: Path, kind: str, task: Task) -> Floats:
    model = Embedder.load(model_path(folder, family="small", task=task, file_type=kind), engine="reference")
    return model.pool(plain(texts()))


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_are_the_merged_models(folder: Path, engine: str) -> None:
    """llama.cpp runs the same files with its own LoRA code."""
    base = Embedder.load(base_path(folder), engine=engine, device="cpu", threads=1)
    assert base.tasks == tuple(Task)
    for task in Task:
        found = base.for_task(task).pool(plain(texts()))
        assert paired_cosine(found, merged(folder, "F32", task)).min() >= EXACT, task
    base.close()


@pytest.mark.parametrize("engine", ["openvino", "llamacpp"])
def test_a_quantized_base_with_adapters_is_as_near_to_the_oracle_as_merged_files(folder: Path, engine: str) -> None:
    """How near that is depends on the processor; adapters are one more product in front of each."""
    merged_files = [(model_path(folder, family="small", task=task, file_type="Q8_0"), task) for task in Task]
    allowed = 3 * loss(merged_files, engine)
    assert loss([(base_path(folder, "Q8_0"), task) for task in Task], engine) <= allowed < 0.003


def loss(files: list[tuple[Path, Task]], engine: str) -> float:
    """The mean of 1 - cosine to the oracle with the same file."""
    found = []
    for path, task in files:
        both = [
            Embedder.load(path, engine=name, device="cpu", threads=1).for_task(task) for name in (engine, "reference")
        ]
        found.append(1 - paired_cosine(*(model.pool(plain(texts())) for model in both)).mean())
    return float(np.mean(found))


def test_the_tasks_are_told_apart(folder: Path) -> None:
    """Or else the cosines above would prove nothing."""
    one, other = (merged(folder, "F32", task) for task in (Task.RETRIEVAL, Task.CODE))
    assert paired_cosine(one, other).max() < 0.99


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_mixed_tasks_is_as_each_alone(folder: Path, engine: str, kind: str) -> None:
    """Sums may be taken in another order: llama.cpp chooses its kernels by the size of the batch."""
    base = Embedder.load(base_path(folder, kind), engine=engine, device="cpu", threads=1)
    tasks = [Task.CODE, Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CODE, Task.RETRIEVAL]
    alone = [base.for_task(task).pool([Item(ids)]) for task, ids in zip(tasks, texts(), strict=True)]
    works = [Work(Item(ids), task) for ids, task in zip(texts(), tasks, strict=True)]
    assert paired_cosine(np.asarray(base.compute.batch(works)), np.concatenate(alone)).min() >= EXACT
    base.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_token_states_take_the_adapter_too(folder: Path, engine: str) -> None:
    model = Embedder.load(base_path(folder), engine=engine, device="cpu", threads=1).for_task(Task.CODE)
    states = model.engine.token_states(plain(texts()), adapters=[list(Task).index(Task.CODE)] * len(LENGTHS))
    means = np.stack([rows.mean(0) for rows in states])
    assert paired_cosine(means, merged(folder, "F32", Task.CODE)).min() >= EXACT
    model.close()


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_long_text_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr("nestling.engine.openvino.engine.PAST_BYTES", 1)
    model = Embedder.load(base_path(folder), engine=engine, device="cpu", threads=1).for_task(Task.CODE)
    monkeypatch.setattr(model.engine, "token_budget", 32)
    assert paired_cosine(model.pool(plain(texts())), merged(folder, "F32", Task.CODE)).min() >= EXACT


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_where_the_time_went_is_known_of_a_base_too(folder: Path, engine: str) -> None:
    model = Embedder.load(base_path(folder, "Q8_0"), engine=engine, device="cpu", threads=1, profile=True)
    model.embed_ids(texts())
    assert isinstance(model.engine, Profiled)
    assert model.engine.profile()["matrix products"] > 0
    with pytest.raises(UsageError, match="reference"):
        Embedder.load(base_path(folder), engine="reference", profile=True)


def test_vectors_and_multi_vectors_are_the_merged_models(folder: Path) -> None:
    base = Embedder.load(base_path(folder), engine="openvino", threads=1)
    for task in Task:
        whole = Embedder.load(model_path(folder, family="small", task=task, file_type="F32"), engine="openvino")
        assert base.for_task(task).spec == whole.spec
        assert paired_cosine(base.for_task(task).encode(["a b", "c"]), whole.encode(["a b", "c"])).min() >= EXACT
        pairs = zip(base.for_task(task).encode_tokens(["a b"]), whole.encode_tokens(["a b"]), strict=True)
        assert min(paired_cosine(one, other).min() for one, other in pairs) >= EXACT


def test_the_files_are_llamacpps(folder: Path) -> None:
    """As `convert_lora_to_gguf.py` writes them and `llama-adapter.cpp` reads them."""
    read = gguf.GGUFReader(adapter_path(folder, Task.CODE))
    values = {key: read.fields[key].contents() for key in read.fields}
    assert {key: values[key] for key in ("general.type", "adapter.type", "general.architecture")} == {
        "general.type": "adapter", "adapter.type": "lora", "general.architecture": "qwen2vl",
    }  # fmt: skip
    assert values["adapter.lora.alpha"] == ALPHA
    shapes = {one.name: tuple(one.shape.tolist()) for one in read.tensors}
    assert len(shapes) == 2 * 2 * 7
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (96, RANK)  # ggml's order
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (RANK, HIDDEN)


def test_lanes_are_scaled_and_apart(folder: Path) -> None:
    side = StackedAdapters(load_adapters(GGUFFile.open(base_path(folder))))
    assert side.width == LANES
    gates = side.gates()
    assert np.array_equal(gates.sum(1), np.full(3, RANK * ALPHA / RANK))
    assert (np.count_nonzero(gates, axis=0)[: 3 * RANK] == 1).all()
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    assert side.rows(names).shape == (2 * LANES, HIDDEN)
    assert side.columns(names).shape == (HIDDEN + 32, 2 * LANES)
    assert not side.columns(names)[:HIDDEN, LANES:].any()


def test_cards_sums_and_a_second_run(folder: Path, small_checkpoint: Path) -> None:
    assert not any(file.fresh for file in pipeline(small_checkpoint, folder).build_base(KINDS))
    card = Card.read(base_path(folder, "Q8_0"))
    adapter = Card.read(adapter_path(folder, Task.CODE))
    assert card
    assert adapter
    assert (card.task, adapter.task, adapter.file_type) == ("base", "code", "F16")
    sums = (folder / "SHA256SUMS").read_text()
    assert f"{adapter.sha256}  adapter-code.gguf" in sums
    assert f"{card.sha256}  small-text-base-Q8_0.gguf" in sums


def test_the_matrix_is_of_all_tasks_in_turn(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the lock is taken before the file is read, in any order. " * 400, "utf-8")
    on = ObserverOptions(threads=1)
    made = calibration.collect_base(base_path(folder, "F32"), text=text, on=on, limit=6)
    of_one = {
        task: calibration.collect(path, spec=spec_of(GGUFFile.open(path)), text=text, on=on, limit=6)
        for task in Task
        if (path := model_path(folder, family="small", task=task, file_type="F32"))
    }
    name = "blk.1.ffn_down.weight"
    found = made.entries[name].mean_square
    mean = np.mean([one.entries[name].mean_square for one in of_one.values()], axis=0)

    def far(row: Floats) -> float:
        return float(np.linalg.norm(found - row) / np.linalg.norm(row))

    assert far(mean) < 0.5 * min(far(one.entries[name].mean_square) for one in of_one.values())


# Bad input.


def changed(path: Path, **fields: Field) -> None:
    """Write a GGUF file again with other fields, named with two underscores for a dot."""
    file = GGUFFile.open(path)
    raws = {name: file.raw(name).copy() for name in file.tensors}
    plans = [TensorPlan(i.name, i.shape, i.kind, lambda name=i.name: [raws[name]]) for i in file.tensors.values()]  # type: ignore[misc]
    write_gguf(path, file.metadata | {name.replace("__", "."): value for name, value in fields.items()}, plans)


def of_another_checkpoint(own: Path) -> None:
    other = write_tiny_checkpoint(own / "checkpoint", seed=2, vocab=SMALL_VOCAB)
    made = pipeline(other, own / "other")._adapter(Task.CODE)
    shutil.copyfile(made.path, adapter_path(own, Task.CODE))


def without(own: Path) -> None:
    adapter_path(own, Task.CODE).unlink()


def not_an_adapter(own: Path) -> None:
    changed(adapter_path(own, Task.CODE), general__type=Field.string("model"))


def another_kind(own: Path) -> None:
    changed(adapter_path(own, Task.CODE), adapter__type=Field.string("control_vector"))


def another_task(own: Path) -> None:
    shutil.copyfile(adapter_path(own, Task.RETRIEVAL), adapter_path(own, Task.CODE))


def another_shape(own: Path) -> None:
    path = adapter_path(own, Task.CODE)
    file = GGUFFile.open(path)
    name = "blk.0.attn_q.weight.lora_a"
    narrow = np.zeros((RANK, 8), np.float16)
    write_gguf(path, file.metadata, [TensorPlan(name, narrow.shape, file.tensors[name].kind, lambda: [narrow])])


def another_architecture(own: Path) -> None:
    changed(adapter_path(own, Task.CODE), general__architecture=Field.string("llama"))


def no_scale(own: Path) -> None:
    changed(adapter_path(own, Task.CODE), adapter__lora__alpha=Field.float32(float("nan")))


def not_gguf(own: Path) -> None:
    adapter_path(own, Task.CODE).write_bytes(b"PK" * 100)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (of_another_checkpoint, FileFormatError, r"adapter-code\.gguf: expected an adapter of .*found one of sha256:"),
        (without, ModelNotFoundError, r"adapter-code\.gguf: no such file: .*nestling build --keep-adapters"),
        (not_an_adapter, GGUFError, "general.type='model': expected 'adapter'"),
        (another_kind, GGUFError, "adapter.type='control_vector': expected 'lora'"),
        (another_task, FileFormatError, "an adapter for retrieval; by its file name, expected one for code"),
        (another_shape, FileFormatError, r"attn_q.weight.lora_a: expected F16 or F32 of shape \(4, 64\)"),
        (another_architecture, FileFormatError, r"expected an adapter for qwen2vl, the base .*; found llama"),
        (no_scale, GGUFError, "adapter.lora.alpha=nan: expected a float above 0"),
        (not_gguf, GGUFError, r"adapter-code\.gguf"),
    ],
)
def test_adapters_that_do_not_fit(own: Path, spoil: Callable[[Path], None], error: type[Exception], said: str) -> None:
    spoil(own)
    with pytest.raises(error, match=said) as caught:
        Embedder.load(base_path(own), engine="reference")
    assert "\n" not in str(caught.value)


def test_a_base_or_an_adapter_is_no_model_by_itself(folder: Path) -> None:
    spec = spec_of(GGUFFile.open(model_path(folder, family="small", task=Task.CODE, file_type="F32")))
    with pytest.raises(FileFormatError, match="takes no --spec"):
        Embedder.load(base_path(folder), spec=spec)
    with pytest.raises(FileFormatError, match="a LoRA adapter, not a model; name its base"):
        Embedder.load(adapter_path(folder, Task.CODE))


def test_a_merged_model_has_one_task(folder: Path) -> None:
    model = Embedder.load(model_path(folder, family="small", task=Task.CODE, file_type="F32"), engine="reference")
    assert model.for_task("code") is model
    with pytest.raises(UsageError, match=r"task='retrieval', but .* is for code"):
        model.for_task("retrieval")


# The store and the command line.


def test_references_to_a_base() -> None:
    found = ModelReference.parse("jina-v4-base:Q4_K_M")
    assert found == ModelReference("jina-v4", None, "Q4_K_M", base=True)
    assert str(found) == "jina-v4-base:Q4_K_M"
    with pytest.raises(ModelNotFoundError, match="nestling build CHECKPOINT --family jina-v4 --keep-adapters"):
        local.resolve("jina-v4-base")


def test_build_list_show_embed_and_remove(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    made = nestling("build", small_checkpoint, "--family", "own", "--quant", "Q8_0", "--keep-adapters", "--json")
    assert "own-text-base-Q8_0.gguf" in made.out
    assert "adapter-matching.gguf" in made.out
    assert "own-base:Q8_0" in nestling("list").out
    shown = nestling("show", "own-base:Q8_0", "--json").out
    assert '"text-matching": {' in shown
    one = nestling("embed", "a", "--model", "own-base", "--task", "code", "--format", "json", "--engine", "reference")
    other = nestling("embed", "a", "--model", "own-base", "--format", "json", "--engine", "reference")
    assert one.out != other.out
    assert nestling("rm", "own-base").code == 0
    assert not list((tmp_path / "models" / "own").glob("*-base-*"))


def test_keep_adapters_is_for_all_tasks(small_checkpoint: Path) -> None:
    done = nestling("build", small_checkpoint, "--keep-adapters", "--task", "code")
    assert done.code == 2
    assert "not supported with --task" in done.err
