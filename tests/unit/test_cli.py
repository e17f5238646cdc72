"""Every verb through the entry point, in this process; real processes are in `tests/fault`."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf
from tests.command_line import Done, nestling

from nestling._util.version import __version__
from nestling.cli.commands import _VERBS
from nestling.cli.output import Embedded, Format, render
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType
from nestling.models.embedder import Embedder
from nestling.spec import Task
from nestling.vectors import Floats

TEXTS = ["a beach", 'the "sea", 海', "x"]


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["F32"]


@pytest.fixture(scope="module")
def expected(model: Path) -> Floats:
    return Embedder.load(model, engine="reference").encode(TEXTS)


def embed(model: Path, *arguments: str | Path, **more: Any) -> Done:
    return nestling("embed", "--model", model, "--engine", "reference", *arguments, **more)


def one_line(done: Done, code: int, *parts: str) -> None:
    """The command failed with this code and said why in one line, and printed nothing."""
    assert (done.code, done.raw) == (code, b""), done
    assert done.err.startswith("nestling: ")
    assert len(done.err.splitlines()) == 1, done.err
    for part in parts:
        assert part in done.err


# Help.


@pytest.mark.parametrize("verb", _VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_has_help(verb: str, flag: str) -> None:
    done = nestling(verb, flag)
    assert (done.code, done.err) == (0, "")
    assert f"Usage: nestling {verb}" in done.out
    assert len(done.out.splitlines()) > 5


def test_help_names_every_verb() -> None:
    done = nestling("--help")
    assert done.code == 0
    assert all(verb in done.out for verb in _VERBS)


def test_no_verb_is_wrong_usage_and_shows_help() -> None:
    done = nestling()
    assert done.code == 2
    assert "Usage: nestling" in done.out + done.err


def test_version() -> None:
    done = nestling("--version")
    assert (done.code, done.out) == (0, f"nestling {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["embed", "--wings"],
        ["embed", "--format", "xml", "a"],
        ["quantize"],
        ["quantize", "x.gguf", "Q8_0", "--out", "y.gguf", "--threads", "0"],
        ["convert", "x"],
        ["build", "--threads", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = nestling(*arguments)
    one_line(done, 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serve", "--prot", "1"], "no such option --prot; did you mean --port?"),
        (["embed", "--dimension", "64", "a"], "no such option --dimension; did you mean --dimensions?"),
        (["eval", "qualty"], "no such command qualty; did you mean quality?"),
        (["serv"], "no such command serv; did you mean serve?"),
        (["fly"], "no such command fly"),
    ],
)
def test_a_misspelt_flag_or_verb_is_one_line_with_the_nearest_right_one(arguments: list[str], line: str) -> None:
    done = nestling(*arguments)
    assert (done.code, done.raw, done.err) == (2, b"", f"nestling: {line}\n")


# Formats.


def test_text_is_a_line_of_numbers_a_text(model: Path, expected: Floats) -> None:
    done = embed(model, *TEXTS)
    found = np.array([line.split(" ") for line in done.out.splitlines()], np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-7)  # eight digits
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("form", ["array", "json", "jsonl", "npy"])
def test_the_other_formats_lose_nothing(model: Path, expected: Floats, form: str) -> None:
    raw = embed(model, *TEXTS, "--format", form).raw
    np.testing.assert_array_equal(read(raw, form), expected)


def read(raw: bytes, form: str) -> Floats:
    if form == "npy":
        return np.asarray(np.load(io.BytesIO(raw)))
    if form == "array":
        return np.array(json.loads(raw), np.float32)
    lines = raw.decode().split("\n")[:-1]
    rows = json.loads(raw)["data"] if form == "json" else list(map(json.loads, lines))
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return np.array([row["embedding"] for row in rows], np.float32)


def test_json_is_the_openai_document_and_counts_the_tokens(model: Path) -> None:
    found = json.loads(embed(model, *TEXTS, "--format", "json").out)
    tokens = sum(map(len, Embedder.load(model, engine="reference").tokenize(TEXTS)))
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (found["object"], found["model"], len(found["data"])) == ("list", str(model), 3)
    assert {row["object"] for row in found["data"]} == {"embedding"}


def test_jsonl_carries_the_texts(model: Path) -> None:
    lines = embed(model, *TEXTS, "--format", "jsonl").out.split("\n")
    assert [json.loads(line)["text"] for line in lines[:-1]] == TEXTS


@pytest.mark.parametrize("form", Format)
def test_a_line_is_a_line_whatever_the_text_holds(form: Format) -> None:
    """A new line or a line separator inside a text must not break the line formats."""
    rows = np.eye(2, 4, dtype=np.float32)
    content = render(Embedded(["a\nb\r\u2028c", "d"], rows, "m", 3), form)
    if form in (Format.TEXT, Format.JSONL):
        assert content.count(b"\n") == 2


# Where texts come from and vectors go.


def test_a_file_of_lines(model: Path, expected: Floats, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    done = embed(model, "--file", tmp_path / "texts.txt", "--format", "npy")
    np.testing.assert_array_equal(read(done.raw, "npy"), expected)


@pytest.mark.parametrize("arguments", [[], ["--file", "-"]])
def test_standard_input(model: Path, expected: Floats, arguments: list[str]) -> None:
    done = embed(model, *arguments, "--format", "npy", stdin="\r\n".join(TEXTS).encode())
    np.testing.assert_array_equal(read(done.raw, "npy"), expected)


def test_only_a_new_line_ends_a_text(model: Path) -> None:
    """Not what `str.splitlines` also takes for one: form feeds, separators, U+2028."""
    done = embed(model, "--format", "jsonl", stdin="a\x0cb\u2028c\x85d\x1ce\nf\n".encode())
    assert [json.loads(line)["text"] for line in done.out.split("\n")[:-1]] == ["a\x0cb\u2028c\x85d\x1ce", "f"]


def test_an_output_file(model: Path, expected: Floats, tmp_path: Path) -> None:
    done = embed(model, *TEXTS, "--format", "npy", "--out", tmp_path / "deep" / "v.npy", terminal=True)
    assert (done.code, done.raw) == (0, b"")
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "v.npy"), expected)


def test_more_texts_than_a_chunk_come_back_in_their_order(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("word " * (7 * place % 5 + 1)).strip() + str(place) for place in range(11)]
    monkeypatch.setattr("nestling.engine.numpy_reference.ReferenceEngine.token_budget", 24)
    found = read(embed(model, *texts, "--format", "npy").raw, "npy")
    np.testing.assert_allclose(found, Embedder.load(model, engine="reference").encode(texts), atol=1e-6)


def test_options_reach_the_embedder(model: Path) -> None:
    done = embed(model, *TEXTS, "--dimensions", "64", "--prompt", "passage", "--format", "npy")
    expected = Embedder.load(model, engine="reference").encode_document(TEXTS, truncate_dim=64)
    np.testing.assert_array_equal(read(done.raw, "npy"), expected)


def test_truncate(model: Path) -> None:
    long = "x y " * tiny_gguf.CONTEXT
    one_line(embed(model, "a", long), 1, "input 1: ", f"this model takes {tiny_gguf.CONTEXT}")
    assert embed(model, "a" * 9, long, "--truncate", "--dimensions", "32").code == 0


# What goes wrong.


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--model", "absent.gguf", "a"], 1, "absent.gguf: no such file"),
        (["--model", "nobody-code", "a"], 1, "nobody-code:Q8_0: not on this machine"),
        (["--model", "starter-code:Q9_9", "a"], 2, "quant='Q9_9'"),
        (["--model", "starter-code", "--task", "retrieval", "a"], 2, "is for code"),
        (["--task", "clustering", "a"], 2, "retrieval, text-matching, code"),
        (["--model", "a b", "a"], 2, "name[-task][:QUANT]"),
        (["--file", "absent.txt"], 2, "absent.txt: cannot be read: No such file"),
        (["--file", ".", "--model", "x.gguf"], 2, "cannot be read: Is a directory"),
        (["--file", "x", "a"], 2, "expected only one of them"),
        ([], 2, "no texts: expected arguments"),
    ],
)
def test_mistakes_before_a_model_is_loaded(arguments: list[str], code: int, part: str) -> None:
    one_line(nestling("embed", *arguments), code, part)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--dimensions", "100", "a"], 2, "dimensions=100: expected one of 32, 64, 128, 256"),
        (["--prompt", "answer", "a"], 2, "prompt_name='answer'"),
        (["--engine", "onnx", "a"], 2, "auto, openvino, llamacpp, torch, reference"),
        (["--task", "code", "a"], 2, "is for retrieval"),
        (["a", ""], 1, "input 1: the text is empty"),
        (["a", "\udcff"], 1, "input 1: the lone surrogate U+DCFF"),
    ],
)
def test_mistakes_about_a_model(model: Path, arguments: list[str], code: int, part: str) -> None:
    one_line(embed(model, *arguments), code, part)


@pytest.mark.parametrize(
    ("stdin", "code", "part"),
    [
        (b"", 2, "standard input: no texts"),
        (b"a\nb\n\xff\n", 2, "standard input: line 3 is not UTF-8"),
        (b"a\n\nb\n", 1, "standard input: line 2: the text is empty"),
    ],
)
def test_mistakes_on_standard_input(model: Path, stdin: bytes, code: int, part: str) -> None:
    one_line(embed(model, stdin=stdin), code, part)


def test_binary_is_not_sent_to_a_terminal(model: Path) -> None:
    one_line(embed(model, "a", "--format", "npy", terminal=True), 2, "--format npy is binary")


def test_an_output_that_cannot_be_written_is_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    one_line(embed(model, "a", "--out", tmp_path / "file" / "v.txt"), 1, "file", "File exists")


# Similarity.


def test_similarity_prints_the_matrix(model: Path, expected: Floats) -> None:
    done = nestling("similarity", *TEXTS, "-m", model, "-e", "reference", "--json")
    found = json.loads(done.out)
    assert found["texts"] == TEXTS
    matrix = np.array(found["cosine"])
    np.testing.assert_allclose(matrix, expected @ expected.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-12)
    table = nestling("similarity", *TEXTS, "-m", model, "-e", "reference").out
    assert f"{matrix[0, 1]:.3f}" in table
    assert all(text in table for text in TEXTS)


def test_similarity_of_texts_with_markup_shows_them_as_they_are(model: Path) -> None:
    texts = ["[red]a[/red]", "[/b]", ":smile:", "\x1b[31mred"]
    done = nestling("similarity", *texts, "-m", model, "-e", "reference")
    assert done.code == 0
    assert all(text in done.out for text in texts[:3])
    assert "\\x1b[31mred" in done.out
    assert "\x1b" not in done.out


# Files.


def test_inspect(model: Path) -> None:
    found = json.loads(nestling("inspect", model, "--json").out)
    file = GGUFFile.open(model)
    assert found["path"] == str(model)
    assert found["metadata"]["general.architecture"] == "qwen2vl"
    assert len(found["metadata"]["tokenizer.ggml.tokens"]) == len(tiny_gguf.tokens())
    assert [(one["name"], tuple(one["shape"]), one["kind"], one["offset"]) for one in found["tensors"]] == [
        (info.name, info.shape, info.kind.name, info.offset) for info in file.tensors.values()
    ]
    assert sum(one["size_bytes"] for one in found["tensors"]) < model.stat().st_size
    table = nestling("inspect", model).out
    assert all(name in table for name in (*file.metadata, *file.tensors))
    assert "[266 items]" in table


def test_inspect_refuses_what_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + bytes(60))
    one_line(nestling("inspect", tmp_path / "x.gguf"), 1, "x.gguf: not a GGUF file")


def test_list(cache_folder: Path) -> None:
    rows = json.loads(nestling("list", "--json").out)
    assert {f"starter-{task}:Q8_0" for task in Task} <= {row["reference"] for row in rows}
    table = nestling("list").out
    assert str(cache_folder) in table
    assert all(row["reference"] in table for row in rows)


def test_convert_then_quantize_then_verify(small_checkpoint: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "code-F32.gguf", tmp_path / "code-Q8_0.gguf"
    made = nestling(
        "convert", small_checkpoint, "--task", "code", "--quant", "f32", "--family", "s", "--out", base, "--json"
    )
    report = json.loads(made.out)
    assert report["size_bytes"] == base.stat().st_size
    assert report["parameters"]["result"] == sum(np.prod(one.shape) for one in GGUFFile.open(base).tensors.values())
    quantized = json.loads(nestling("quantize", base, "q8_0", "--out", out, "--threads", "1", "--json").out)
    assert quantized["size_bytes"] == out.stat().st_size
    assert GGUFFile.open(out).tensors["blk.0.ffn_up.weight"].kind is QuantType.Q8_0
    done = nestling("verify", out, "--against", base, "--json")
    checks = json.loads(done.out)
    assert (done.code, [check["passed"] for check in checks]) == (0, [True] * 6)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["quantize", "MODEL", "Q9", "--out", "OUT"], 2, "quant='Q9'"),
        (["quantize", "absent.gguf", "Q8_0", "--out", "OUT"], 1, "absent.gguf: no such file"),
        (["quantize", "MODEL", "IQ1_S", "--out", "OUT"], 1, "importance matrix"),
        (["quantize", "MODEL", "Q8_0", "--out", "MODEL"], 2, "this is the source"),
        (["convert", "CHECKPOINT", "--task", "clustering", "--out", "OUT"], 2, "retrieval, text-matching, code"),
        (
            ["convert", "CHECKPOINT", "--task", "code", "--quant", "Q8_0", "--family", "s", "--out", "OUT"],
            2,
            "F32, F16, BF16",
        ),
        (["convert", "CHECKPOINT", "--task", "code", "--out", "OUT"], 2, "--family NAME (jina-v4 for jinaai/"),
        (["build", "CHECKPOINT", "--out", "OUT"], 2, "--family NAME (jina-v4 for jinaai/"),
        (["multivector", "CHECKPOINT", "--out", "OUT"], 2, "--family NAME (jina-v4 for jinaai/"),
        (["build", "CHECKPOINT", "--family", "../x", "--out", "OUT"], 2, "family='../x'"),
        (["convert", "absent", "--task", "code", "--out", "OUT"], 1, "absent"),
        (["build", "absent", "--out", "OUT"], 1, "absent"),
        (["build", "CHECKPOINT", "--quant", "Q8_0,Q9", "--out", "OUT"], 2, "quant='Q9'"),
        (["build", "CHECKPOINT", "--task", "x", "--out", "OUT"], 2, "task='x'"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    model: Path, small_checkpoint: Path, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(model.read_bytes())
    places = {"MODEL": source, "CHECKPOINT": small_checkpoint, "OUT": tmp_path / "out"}
    one_line(nestling(*(places.get(word, word) for word in arguments)), code, part)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert source.read_bytes() == model.read_bytes()


def test_build(small_checkpoint: Path, tmp_path: Path) -> None:
    tasks, kinds = ["--task", "code", "-t", "retrieval"], ["--quant", "q8_0,F16"]
    arguments = ["build", str(small_checkpoint), *tasks, *kinds, "--out", str(tmp_path)]
    first = json.loads(nestling(*arguments, "--family", "own", "--threads", "1", "--json").out)
    assert [Path(row["path"]).name for row in first] == [
        f"own-text-{task}-{kind}.gguf" for task in ("code", "retrieval") for kind in ("F16", "Q8_0")
    ]
    assert all(row["fresh"] for row in first)
    again = nestling(*arguments, "--family", "own")
    assert again.code == 0
    assert again.out.count("kept") == 4


def test_a_corrupted_file_fails_verification(small_checkpoint: Path, tmp_path: Path) -> None:
    nestling("build", small_checkpoint, "--task", "code", "--quant", "F16", "--out", tmp_path, "--family", "own")
    path = tmp_path / "own-text-code-F16.gguf"
    offset = GGUFFile.open(path).tensors["blk.0.ffn_up.weight"].offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([file.read(1)[0] ^ 1]))
    done = nestling("verify", path)
    assert done.code == 1
    assert done.out.count("FAILED") == 1
    assert "the card says" in done.out


def test_a_file_that_is_no_model_fails_verification(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    done = nestling("verify", tmp_path / "x.gguf", "--json")
    assert (done.code, json.loads(done.out)[0]["check"]) == (1, "structure")


# Profile.


def test_a_profile_goes_to_standard_error_and_adds_up(tiny_models: dict[str, Path]) -> None:
    path = tiny_models["Q8_0"]
    done = nestling("embed", "--model", path, "--engine", "openvino", "--profile", *TEXTS)
    plain = nestling("embed", "--model", path, "--engine", "openvino", *TEXTS)
    assert (done.code, done.raw) == (0, plain.raw)
    rows = [line.split("│") for line in done.err.splitlines() if "│" in line]
    shares = {stage.strip(): float(share.strip(" %")) for stage, _, share in rows if share.strip()}
    expected = {"tokenize", "embedding rows", "matrix products", "attention", "rest of the layers", "pool", "serialize"}
    assert expected <= set(shares)
    assert sum(shares.values()) == pytest.approx(100, abs=0.05 * len(shares))  # each is rounded to a tenth
    assert shares["matrix products"] > 0


def test_an_engine_that_cannot_tell_says_so(model: Path) -> None:
    one_line(embed(model, "--profile", "a"), 2, "profile", "openvino")
