"""Published files without a specification, files that are none, and a second family through a specification file."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf
from tests.command_line import nestling

from nestling.engine.names import EngineName
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.protocol import Item, plain
from nestling.errors import FileFormatError, UsageError
from nestling.formats.gguf import Field, GGUFFile, TensorPlan, write_gguf
from nestling.formats.quant_types import QuantType
from nestling.models.embedder import Embedder
from nestling.models.families import JINA_V4, by_file_name, published_name, read_spec, with_spec
from nestling.models.file_spec import spec_of
from nestling.pipeline.conversion.casts import cast_rows
from nestling.spec import MAX_SPEC_LENGTH, ModelSpec, Pooling, Task, prefixes_for
from nestling.vectors import paired_cosine

SIZES = {**JINA_V4.shape, "context_length": 128000}


def published(folder: Path, name: str, *, architecture: str = "qwen2vl", **changes: Any) -> GGUFFile:
    """A file with the published collection's metadata and no tensors; `changes` by key with dots as `__`."""
    fields = {"general.architecture": Field.string(architecture), "general.type": Field.string("model")}
    fields |= {f"{architecture}.{key}": Field.uint32(value) for key, value in SIZES.items()}
    for key, value in changes.items():
        full = key.replace("__", ".")
        full = full if full.startswith(("general.", "nestling.")) else f"{architecture}.{full}"
        fields[full] = field(value)
    write_gguf(folder / name, fields, [])
    return GGUFFile.open(folder / name)


def field(value: object) -> Field:
    if isinstance(value, bool):
        return Field.boolean(value)
    return Field.string(value) if isinstance(value, str) else Field.uint32(int(str(value)))


# The published collection.


@pytest.mark.parametrize("architecture", ["qwen2vl", "qwen2"])
@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("quant", ["Q4_K_M", "F16", "IQ2_XXS"])
def test_a_published_file_is_known_by_its_name(tmp_path: Path, architecture: str, task: Task, quant: str) -> None:
    file = published(tmp_path, published_name(JINA_V4, task, quant), architecture=architecture)
    assert file.path.name == f"jina-embeddings-v4-text-{task.stem}-{quant}.gguf"
    assert spec_of(file) == ModelSpec(
        "jina-v4",
        task,
        (128, 256, 512, 1024, 2048),
        32768,
        prefixes_for(task),
        Pooling.MEAN,
        "jinaai/jina-embeddings-v4",
    )


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (Task.RETRIEVAL, {"general__name": "Jina Embeddings v4 Text Retrieval"}),
        (Task.TEXT_MATCHING, {"general__name": "jina-embeddings-v4-text-matching"}),
        (Task.CODE, {"general__basename": "jina_embeddings_v4_text_code"}),
        (Task.CODE, {"general__name": "Merged", "general__basename": "jina-embeddings-v4-code"}),
    ],
)
def test_a_renamed_file_is_known_by_what_it_calls_itself(tmp_path: Path, task: Task, changes: dict[str, str]) -> None:
    assert spec_of(published(tmp_path, "model.gguf", **changes)).task is task


def test_a_file_in_the_hubs_cache_is_known_by_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--jinaai--jina-embeddings-v4-text-code-GGUF" / "snapshots" / ("0" * 40)
    assert spec_of(published(folder, "model-F16.gguf")).task is Task.CODE


def test_a_short_context_bounds_the_text(tmp_path: Path) -> None:
    assert spec_of(published(tmp_path, published_name(JINA_V4, Task.CODE, "F16"), context_length=512)).max_tokens == 512


def test_a_pooling_type_that_agrees_is_no_hindrance(tmp_path: Path) -> None:
    assert spec_of(published(tmp_path, published_name(JINA_V4, Task.CODE, "F16"), pooling_type=1)).task is Task.CODE


NAME = "jina-embeddings-v4-text-code-F16.gguf"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another architecture": (NAME, {"architecture": "llama"}, "architecture 'llama', jina-v4 has qwen2vl or qwen2"),
    "another decoder": (NAME, {"architecture": "llama"}, "architecture 'llama'"),
    "fewer layers": (NAME, {"block_count": 28}, "block_count 28, jina-v4 has 36"),
    "another width": (NAME, {"embedding_length": 1024}, "embedding_length 1024, jina-v4 has 2048"),
    "more heads": (NAME, {"attention__head_count_kv": 16}, "attention.head_count_kv 16, jina-v4 has 2"),
    "a chat model of this shape": ("Qwen2.5-VL-3B-Instruct-Q4_K_M.gguf", {}, "no name in it says jina-embeddings-v4"),
    "the whole model": ("jina-embeddings-v4-F16.gguf", {}, "no name in it says jina-embeddings-v4 and a task"),
    "another word": ("jina-embeddings-v4-text-codex-F16.gguf", {}, "no name in it says jina-embeddings-v4 and a task"),
    "a sibling": ("jina-embeddings-v41-text-code-F16.gguf", {}, "no name in it says jina-embeddings-v4 and a task"),
    "two tasks": (
        NAME, {"general__name": "jina-embeddings-v4-text-retrieval"},
        f"contradict each other: '{NAME}' is code, 'jina-embeddings-v4-text-retrieval' is retrieval",
    ),
    "last pooling": (NAME, {"pooling_type": 3}, "qwen2vl.pooling_type=3, but the specification says mean"),
    "not causal": (NAME, {"attention__causal": False}, "attention.causal=False: expected a causal decoder"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_published_is_refused_with_the_reason(tmp_path: Path, fault: str) -> None:
    name, changes, reason = REFUSED[fault]
    with pytest.raises(FileFormatError) as caught:
        spec_of(published(tmp_path, name, **changes))
    assert str(caught.value).startswith(
        f"{tmp_path / name}: no nestling.spec in it, and not a known published embedding model"
    )
    assert reason in str(caught.value)
    assert "--spec FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vision_tower_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"a vision tower, not a model; name the model's file"):
        spec_of(published(tmp_path, NAME, architecture="clip"))


def test_an_empty_file_has_no_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / NAME, {}, [])
    with pytest.raises(FileFormatError, match="architecture None"):
        spec_of(GGUFFile.open(tmp_path / NAME))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAME, ("jina-v4", Task.CODE, "F16")),
        ("jina-embeddings-v4-text-matching-IQ3_S.gguf", ("jina-v4", Task.TEXT_MATCHING, "IQ3_S")),
        ("starter-text-retrieval-Q8_0.gguf", ("starter", Task.RETRIEVAL, "Q8_0")),
        ("jina-embeddings-v4-text-code-XXL.gguf", None),
        ("jina-embeddings-v4-text-code.gguf", None),
        ("starter-text-code-multivector.gguf", None),
        ("mmproj-jina-embeddings-v4-retrieval-BF16.gguf", None),
    ],
)
def test_published_names_are_read(name: str, expected: object) -> None:
    assert by_file_name(name) == expected


# A second family: Qwen2's own architecture, last pooling, prefixes of its own, described by a file.

SPEC: dict[str, Any] = {
    "family": "second", "task": "code", "dimensions": [64, 256], "max_tokens": 512, "pooling": "last",
    "prefixes": {"query": "Find code: ", "passage": "Candidate: "},
}  # fmt: skip


def write_second(path: Path, **changes: Any) -> Path:
    """The tiny model as a plain `qwen2` file without a specification."""
    renamed = {key.replace("qwen2vl", "qwen2"): value for key, value in tiny_gguf.metadata("F32").items()}
    drop = {"nestling.spec", "qwen2.pooling_type", "qwen2.rope.dimension_sections"}
    fields = {key: value for key, value in renamed.items() if key not in drop}
    fields |= {"general.architecture": Field.string("qwen2")}
    fields |= {key.replace("__", "."): field(value) for key, value in changes.items()}
    plans = [
        TensorPlan(
            name,
            array.shape,
            QuantType.F32,
            partial(lambda a, n: [cast_rows(a, kind=QuantType.F32, name=n)], array, name),
        )
        for name, array in tiny_gguf.weights().items()
    ]
    write_gguf(path, fields, plans)
    return path


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_second(tmp_path_factory.mktemp("second") / "second-F32.gguf")


def write_spec(folder: Path, **changes: Any) -> Path:
    path = folder / "second.json"
    path.write_text(json.dumps(SPEC | changes), "utf-8")
    return path


def test_without_its_specification_the_second_family_is_refused(second: Path) -> None:
    with pytest.raises(FileFormatError, match="block_count 2, jina-v4 has 36"):
        Embedder.load(second, engine="reference")


@pytest.mark.parametrize("engine", [name for name in EngineName if name is not EngineName.AUTO])
def test_last_pooling_is_the_last_tokens_state_in_every_engine(
    second: Path, tmp_path: Path, engine: EngineName
) -> None:
    """Several texts of different lengths at once; 0.9999 as for every float file."""
    device = "cpu" if engine is EngineName.TORCH else None
    model = Embedder.load(second, engine=engine, threads=1, device=device, spec=read_spec(write_spec(tmp_path)))
    texts = ["def add(a, b)", "x", "the sea and the beach, in the rain " * 3]
    ids = model.tokenize(texts)
    assert [model.tokenizer.decode(one)[:11] for one in ids] == ["Find code: "] * 3
    oracle = ReferenceEngine(GGUFFile.open(second))
    expected = np.stack([oracle.states(Item(one))[-1] for one in ids])
    found = model.encode(texts)
    assert paired_cosine(found, expected).min() >= 0.9999
    means = oracle.pool(plain(ids))
    assert paired_cosine(found, means).max() < 0.99  # or else the test could not tell them apart
    assert model.encode(texts, truncate_dim=64).shape == (3, 64)
    model.close()


def test_the_command_takes_a_specification(second: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    arguments: list[str | Path] = ["embed", "-m", second, "-e", "reference", "--format", "array", "a b"]
    done = nestling(*arguments, "--spec", spec)
    expected = Embedder.load(second, engine="reference", spec=read_spec(spec)).encode(["a b"])
    np.testing.assert_allclose(json.loads(done.out), expected, rtol=1e-6)
    assert nestling(*arguments).code == 1


def test_verify_takes_a_specification(second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.evaluation.verify.PROBES", ("sunset", "a beach, at night"))
    done = nestling("verify", second, "--spec", write_spec(tmp_path), "--json")
    checks = json.loads(done.out)
    assert (done.code, [check["passed"] for check in checks]) == (0, [True] * 5), checks
    assert "second-code" in checks[0]["detail"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dimensions": [128, 512]}, "512 dimensions, the weights 256"),
        ({"max_tokens": 10**6}, "max_tokens=1000000, the file's context is 4096"),
    ],
)
def test_a_specification_that_does_not_fit_is_refused(
    second: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(FileFormatError, match=reason):
        with_spec(GGUFFile.open(second), read_spec(write_spec(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qwen2__pooling_type": 1}, "qwen2.pooling_type=1, but the specification says last"),
        ({"qwen2__attention__causal": False}, "expected a causal decoder"),
        ({"general__architecture": "bert"}, "architecture 'bert': expected one of qwen2vl, qwen2"),
    ],
)
def test_a_file_that_contradicts_its_specification_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    file = GGUFFile.open(write_second(tmp_path / "x.gguf", **changes))
    with pytest.raises(FileFormatError, match=reason):
        with_spec(file, read_spec(write_spec(tmp_path)))


def test_a_files_own_specification_is_not_replaced(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a nestling\.spec, which cannot be replaced"):
        Embedder.load(tiny_models["F32"], spec=read_spec(write_spec(tmp_path)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "line 1 is not UTF-8"),
        (b"[" * 60_000, "not valid JSON"),
        (b"[]", "expected an object with the fields family, task"),
        (b'{"colour": 1}', "no such field 'colour': expected one of family, task"),
        (b"{}", "not a model specification"),
        (json.dumps(SPEC | {"task": "cooking"}).encode(), "task='cooking': expected one of retrieval"),
        (json.dumps(SPEC | {"pooling": "cls"}).encode(), "pooling='cls': expected one of mean, last"),
        (json.dumps(SPEC | {"dimensions": []}).encode(), r"dimensions=\[\]: expected ascending sizes"),
        (b" " * (MAX_SPEC_LENGTH + 1), "larger than"),
    ],
)
def test_what_is_no_specification_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"spec\.json: .*{reason}"):
        read_spec(tmp_path / "spec.json")


def test_a_specification_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json: cannot be read"):
        read_spec(tmp_path / "absent.json")


def test_a_specification_is_what_the_files_carry(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(tiny_gguf.spec().to_json(), "utf-8")
    assert read_spec(path) == tiny_gguf.spec()
    assert replace(read_spec(path), source="") != tiny_gguf.spec()
