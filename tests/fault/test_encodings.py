"""Encodings: the byte order mark that an editor puts in front of a file is part of its encoding, never of its content.

Doors where text comes in: `--file` and standard input (`embed`, `rerank`), `--spec`, every JSON file of a checkpoint
(configuration, adapters' configuration, tokenizer, index), its README's front matter and `refs/main`, calibration text,
mix recipes, cards, the record of fidelity, result files, key files, a benchmark's corpus, queries, judgements and
pairs, and the sources of `bulk` (JSON lines and CSV, their header too). A request's body is in the server's tests.
With its mark, UTF-8, UTF-16 or UTF-32 reads as UTF-8 without one does; what is neither is refused in one line. Sources
of `bulk` are read in pieces and may be huge: UTF-8 alone, other marks are refused by name.
"""

import codecs
import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from tests import evaluation_samples, tiny_gguf
from tests.command_line import nestling

from nestling import bulk
from nestling._util.text import decode_text, read_text
from nestling._util.version import __version__
from nestling.engine.observers import ObserverOptions
from nestling.errors import FileFormatError, NestlingError
from nestling.evaluation import data, results
from nestling.formats.card import Card
from nestling.formats.quant_types import QuantType
from nestling.models.families import read_spec
from nestling.models.fidelity import RECORD, Fidelity, Record
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.snapshot import Folder
from nestling.pipeline.conversion.tokenizer_fields import tokenizer_fields
from nestling.pipeline.quantization.calibration import collect
from nestling.pipeline.quantization.search.recipe_file import MixRecipe
from nestling.server.settings import read_settings

ENCODED: dict[str, Callable[[str], bytes]] = {
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16, little-endian": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "UTF-8 with a mark and CR LF": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
}
NO_TEXT: dict[str, Callable[[str], bytes]] = {
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "Latin-1": lambda text: text.encode("latin-1", "replace") + b"\n\xe9\n",
    "UTF-16 cut off": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le") + b"\0",
}


@dataclasses.dataclass(frozen=True)
class Door:
    """A place where a text file comes in: the file (below a folder), and what is read through it."""

    file: str
    read: Callable[[Path], object]


def embedded(verb: Sequence[str], model: Path, folder: Path) -> object:
    done = nestling(*verb, "--file", folder / "lines.txt", "--model", model, "--engine", "reference")
    if done.code:
        raise NestlingError(done.err.removeprefix("nestling: ").rstrip("\n"))
    return done.out


def from_standard_input(model: Path, folder: Path) -> object:
    content = (folder / "lines.txt").read_bytes()
    done = nestling("embed", "--file", "-", "--model", model, "--engine", "reference", stdin=content)
    if done.code:
        raise NestlingError(done.err.removeprefix("nestling: ").rstrip("\n").replace("-: ", "lines.txt: "))
    return done.out


def checkpoint(folder: Path) -> object:
    found = Checkpoint.open(folder)
    return found.config, found.adapter_config, sorted(found.tensors), found.licence()


def tokenizer(folder: Path) -> object:
    return tokenizer_fields(folder / "tokenizer.json", vocab_size=Checkpoint.open(folder).config.vocab)


def matrix(model: Path, folder: Path) -> object:
    found = collect(model, spec=tiny_gguf.spec(), text=folder / "x.txt", on=ObserverOptions(threads=1), limit=2)
    found.write(folder / "m.gguf")
    return (folder / "m.gguf").read_bytes()


def benchmark(folder: Path) -> object:
    return data.load(str(folder)).sha256


def pairs(folder: Path) -> object:
    return data.load(str(folder / "pairs.jsonl")).sha256


def keys(folder: Path) -> object:
    return read_settings({"api_key_file": folder / "keys"}, {}).api_key


@pytest.fixture(scope="module")
def whole(
    tiny_models: dict[str, Path], small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Door], Path]:
    """The doors by name, and a folder with a sound file for each."""
    folder, model = tmp_path_factory.mktemp("whole"), tiny_models["F32"]
    shutil.copytree(small_checkpoint, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n# A model\n")
    paragraphs = [f"Paragraph {number}: the folder is locked while it is built." for number in range(60)]
    (folder / "x.txt").write_text("\n\n".join(paragraphs[:40]) + "\n", "utf-8")
    (folder / "lines.txt").write_text("a beach\ncafé\n", "utf-8")
    (folder / "spec.json").write_text(tiny_gguf.spec().to_json())
    MixRecipe("Q4_K_M", {"a.weight": QuantType.Q4_K}, {"a.weight": (8, 256)}).write(folder / "mix.json")
    (folder / "keys").write_text("one\ntwo\n")
    card = Card(**{one.name: _value(one) for one in dataclasses.fields(Card)})  # type: ignore[arg-type]
    dataclasses.replace(card, file="model.gguf").write(folder)
    results.write(folder / "result.json", evaluation_samples.quality_results(["F16"])[0])
    evaluation_samples.write_benchmark(folder)
    evaluation_samples.write_pairs(folder / "pairs.jsonl")
    doors = {
        "embed --file": Door("lines.txt", partial(embedded, ["embed"], model)),
        "embed, standard input": Door("lines.txt", partial(from_standard_input, model)),
        "rerank --file": Door("lines.txt", partial(embedded, ["rerank", "a query", "--scoring", "cosine"], model)),
        "--spec": Door("spec.json", lambda folder: read_spec(folder / "spec.json")),
        "config.json": Door("config.json", checkpoint),
        "adapter_config.json": Door("adapters/adapter_config.json", checkpoint),
        "index.json": Door("model.safetensors.index.json", checkpoint),
        "README.md": Door("README.md", checkpoint),
        "tokenizer.json": Door("tokenizer.json", tokenizer),
        "calibration": Door("x.txt", partial(matrix, model)),
        "recipe": Door("mix.json", lambda folder: MixRecipe.read(folder / "mix.json")),
        "card": Door("model.json", lambda folder: Card.read(folder / "model.gguf")),
        "result": Door("result.json", lambda folder: results.read(folder / "result.json")),
        "key file": Door("keys", keys),
        "corpus": Door("corpus.jsonl", benchmark),
        "queries": Door("queries.jsonl", benchmark),
        "judgements": Door("qrels/test.tsv", benchmark),
        "pairs": Door("pairs.jsonl", pairs),
    }
    return doors, folder


def _value(one: "dataclasses.Field[object]") -> object:
    return {"str": "x", "int": 1, "float": 1.0}.get(getattr(one.type, "__name__", str(one.type)), {})


DOORS = (
    "embed --file", "embed, standard input", "rerank --file", "--spec", "config.json", "adapter_config.json",
    "index.json", "README.md", "tokenizer.json", "calibration", "recipe", "card", "result", "key file", "corpus",
    "queries", "judgements", "pairs",
)  # fmt: skip


@pytest.fixture
def place(whole: tuple[dict[str, Door], Path], tmp_path: Path) -> Path:
    """A copy of the folder to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(whole[1], folder)
    return folder


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", DOORS)
def test_a_mark_is_no_part_of_the_content(
    name: str, encoding: str, whole: tuple[dict[str, Door], Path], place: Path
) -> None:
    door = whole[0][name]
    expected = door.read(place)
    content = (place / door.file).read_text("utf-8")
    (place / door.file).write_bytes(ENCODED[encoding](content))
    assert door.read(place) == expected


@pytest.mark.parametrize("encoding", NO_TEXT)
@pytest.mark.parametrize("name", DOORS)
def test_what_is_no_text_is_refused_in_one_line(
    name: str, encoding: str, whole: tuple[dict[str, Door], Path], place: Path
) -> None:
    door = whole[0][name]
    (place / door.file).write_bytes(NO_TEXT[encoding]((place / door.file).read_text("utf-8")))
    with pytest.raises(NestlingError) as caught:
        door.read(place)
    assert door.file in str(caught.value)
    assert "UTF-" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_of_fidelity_with_a_mark_is_known(tmp_path: Path) -> None:
    content = json.dumps({"made_by": __version__, "files": {"a b": {"mean": 0.5, "lowest": 0.25}}})
    (tmp_path / RECORD).write_bytes(content.encode("utf-8-sig"))
    assert Record.read(tmp_path).known == {"a b": Fidelity(0.5, 0.25)}
    (tmp_path / RECORD).write_bytes(b"\xff\xfe\xff")
    assert Record.read(tmp_path).known == {}


def test_a_revision_with_a_mark_is_found(small_checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    shutil.copytree(small_checkpoint, cache / "snapshots" / "one")
    shutil.copytree(small_checkpoint, cache / "snapshots" / "two")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_bytes("two\n".encode("utf-8-sig"))
    assert Folder.open(cache).path.name == "two"


# `bulk`.

ROWS = '{"id":1,"text":"café"}\r\n{"id":2,"text":"b"}\r\n'
TABLE = "id,text\r\n1,café\r\n2,b\r\n"


def job(tiny_models: dict[str, Path], tmp_path: Path, name: str, content: bytes) -> bulk.Outcome:
    (tmp_path / name).write_bytes(content)
    what = bulk.JobSpec(str(tiny_models["F32"]), backend="reference")
    return bulk.run([str(tmp_path / name)], tmp_path / "out", what)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz", "x.csv.gz"])
def test_bulk_drops_the_mark_of_utf_8(name: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    content = (ROWS if "jsonl" in name else TABLE).encode("utf-8-sig")
    outcome = job(tiny_models, tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert (outcome.rows, outcome.rejected) == (2, 0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz"])
def test_bulk_refuses_other_encodings_whole(
    name: str, encoding: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    content = (ROWS if "jsonl" in name else TABLE).encode(encoding)
    with pytest.raises(FileFormatError, match=rf"{name}: .*expected UTF-8"):
        job(tiny_models, tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)


def test_bulk_takes_files_that_were_joined_with_their_marks(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    joined = '{"id":1,"text":"a"}\n'.encode("utf-8-sig") + '{"id":2,"text":"b"}\n'.encode("utf-8-sig")
    outcome = job(tiny_models, tmp_path, "x.jsonl", joined)
    assert (outcome.rows, outcome.rejected) == (2, 0)


def test_bulk_says_that_a_header_is_not_utf_8(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"x\.csv: the header is not UTF-8: caf\\xe9"):
        job(tiny_models, tmp_path, "x.csv", b"id,text,caf\xe9\n1,a,b\n")


# What all of them stand on.


def test_a_line_and_a_byte_are_named() -> None:
    with pytest.raises(FileFormatError, match=r"^x: line 2 is not UTF-8 \(its byte 3\)$"):
        decode_text(b"a\nbc\xff", what="x")
    with pytest.raises(FileFormatError, match=r"^x: line 2 is not UTF-16 "):
        decode_text("a\nb".encode("utf-16") + b"\0", what="x")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"absent: cannot be read: No such file"):
        read_text(tmp_path / "absent")


def test_an_empty_text_and_a_mark_alone_are_empty() -> None:
    assert decode_text(b"", what="x") == decode_text(codecs.BOM_UTF8, what="x") == ""
