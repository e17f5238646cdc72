"""A specification that comes in from outside is checked like a request, at every door.

Doors: a model's GGUF file, an adapter beside a base, a multi-vector head, a vision tower, `--spec`, a card; and the
family name of a checkpoint that is built. `test_spec` has what is wrong with the fields themselves.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_gguf

from nestling.engine.lora import Adapter
from nestling.errors import FileFormatError, NestlingError, UsageError
from nestling.formats.card import Card
from nestling.formats.gguf import Field, GGUFFile, write_gguf
from nestling.formats.multivector_head import Projector
from nestling.models.families import JINA_V4, family_of, read_spec
from nestling.models.file_spec import spec_of
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.multivector import write_projector
from nestling.pipeline.pipeline import Pipeline
from nestling.spec import ModelSpec, Task

ELSEWHERE = {"family": "../../../../tmp/x"}
LONG = {"max_tokens": 10**30}
TWICE = {"dimensions": [256, 256]}


def changed(spec: ModelSpec, values: dict[str, Any]) -> str:
    return json.dumps(json.loads(spec.to_json()) | values)


def rewritten(path: Path, old: str, new: str) -> None:
    """Another specification in the place of a file's own, padded with blanks to its length."""
    raw = path.read_bytes()
    assert raw.count(old.encode()) == 1
    path.write_bytes(raw.replace(old.encode(), new.ljust(len(old)).encode()))


def of_a_model(folder: Path, values: dict[str, Any]) -> object:
    text = changed(tiny_gguf.spec(), values)
    write_gguf(folder / "m.gguf", tiny_gguf.metadata("F32") | {"nestling.spec": Field.string(text)}, [])
    return spec_of(GGUFFile.open(folder / "m.gguf"))


def of_a_file_given(folder: Path, values: dict[str, Any]) -> object:
    (folder / "s.json").write_text(changed(tiny_gguf.spec(), values))
    return read_spec(folder / "s.json")


def of_a_card(folder: Path, values: dict[str, Any]) -> object:
    texts = ("sha256", "file_type", "task", "source", "licence", "made_from", "made_by")
    facts: dict[str, Any] = dict.fromkeys(texts, "") | {"file": "m.gguf", "family": "f", "tensor_types": {}}
    facts |= {"size_bytes": 1, "bits_per_weight": 1.0, "parameters": 1}
    (folder / "m.json").write_text(json.dumps(facts | values))
    return Card.read(folder / "m.gguf")


@pytest.mark.parametrize(
    ("door", "values", "message"),
    [
        (of_a_model, ELSEWHERE, "m.gguf: nestling.spec: family='../../../../tmp/x': expected 1 to 64 characters of"),
        (of_a_model, LONG, "max_tokens=1000000000000000000000000000000: expected 1 to"),
        (of_a_model, TWICE, r"dimensions=\[256, 256\]: expected ascending sizes"),
        (of_a_model, {"max_tokens": tiny_gguf.CONTEXT + 1}, f"max_tokens={tiny_gguf.CONTEXT + 1}, the file's context"),
        (of_a_model, {"pooling": "last"}, "pooling_type=1, but the specification says last"),
        (of_a_file_given, ELSEWHERE, "s.json: nestling.spec: family="),
        (of_a_file_given, LONG, "max_tokens="),
        (of_a_file_given, TWICE, "dimensions="),
        (of_a_card, ELSEWHERE, "m.json: .*family='../../../../tmp/x'"),
        (of_a_card, {"file": "../m.gguf"}, "file='../m.gguf': expected the name of a file in the card's folder"),
    ],
)
def test_a_door_refuses(
    tmp_path: Path, door: Callable[[Path, dict[str, Any]], object], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        door(tmp_path, values)


@pytest.fixture(scope="module")
def base(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    built = Pipeline(Checkpoint.open(small_checkpoint), folder, "a" * 60, 1).build_base(["F16"])
    return built[0].path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "../x"}, "family='../x': expected"),
        ({"max_tokens": 99999}, "99999 tokens, the base"),
        ({"dimensions": [128]}, "128 dimensions"),
    ],
)
def test_an_adapter_is_refused(base: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = tmp_path / "adapter-code.gguf"
    shutil.copy(base.with_name("adapter-code.gguf"), path)
    spec = Adapter.open(path, GGUFFile.open(base)).spec
    short = replace(spec, family="a")
    rewritten(path, spec.to_json(), changed(short, values))
    with pytest.raises(FileFormatError, match=message):
        Adapter.open(path, GGUFFile.open(base))


def test_a_head_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "h.gguf"
    write_projector(Checkpoint.open(small_checkpoint), task=Task.CODE, out=path, family="a" * 60)
    spec = Projector.open(path).spec
    rewritten(path, spec.to_json(), changed(spec, {"family": "../x"}))
    with pytest.raises(FileFormatError, match=r"h.gguf: nestling.spec: family='../x'"):
        Projector.open(path)


# The family of a checkpoint.


@pytest.mark.parametrize(
    ("repository", "family"),
    [(JINA_V4.checkpoint, "jina-v4"), ("me/my-tune", "my-tune"), ("other/jina-embeddings-v4", "jina-embeddings-v4")],
)
def test_the_family_comes_from_the_repository(
    small_checkpoint: Path, tmp_path: Path, repository: str, family: str
) -> None:
    folder = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40)
    shutil.copytree(small_checkpoint, folder)
    assert family_of(Checkpoint.open(folder), None) == family
    assert family_of(Checkpoint.open(folder), "own") == "own"


@pytest.mark.parametrize("repository", ["", "me/jina-v4"])
def test_a_checkpoint_that_nothing_names_takes_a_name(small_checkpoint: Path, tmp_path: Path, repository: str) -> None:
    cache = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40)
    folder = cache if repository else tmp_path / "plain"
    shutil.copytree(small_checkpoint, folder)
    with pytest.raises(UsageError, match="--family NAME") as caught:
        family_of(Checkpoint.open(folder), None)
    assert caught.value.param == "family"
    with pytest.raises(NestlingError, match=r"family='\.\./x'"):
        family_of(Checkpoint.open(folder), "../x")
