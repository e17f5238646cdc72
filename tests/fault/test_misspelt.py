"""A wrong word, wherever it comes in: one line that says what was expected, and the nearest right spelling.

Doors: every flag of every command; every verb; the values of closed sets, by flag, by variable, in a reference and in
a file (`--spec`); references to models, repositories and sets; `NESTLING_*` variables. The Python surface's are in
`test_wrong_arguments`, those of HTTP in the server's tests.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.command_line import Done, nestling

from nestling import errors
from nestling._util.files import CACHE_VARIABLE
from nestling.cli import commands
from nestling.compat import JinaEmbeddingsV4
from nestling.engine.openvino.weight_files import LIMIT_VARIABLE
from nestling.evaluation.remote import KEY_VARIABLE
from nestling.server.settings import OTHERS, SETTINGS, check_variables, variable


def line_of(done: Done, code: int) -> str:
    assert (done.code, done.raw, done.err.count("\n")) == (code, b"", 1), done
    assert done.err.startswith("nestling: ")
    return done.err.removeprefix("nestling: ").strip()


# Flags and verbs.


def verbs() -> Iterator[tuple[tuple[str, ...], Any]]:
    root: Any = typer.main.get_command(commands.app)
    yield (), root
    for name, verb in root.commands.items():
        yield (name,), verb
        for inner, one in getattr(verb, "commands", {}).items():
            yield (name, inner), one


@pytest.mark.parametrize(("words", "verb"), [pytest.param(*one, id=" ".join(one[0])) for one in verbs()])
def test_a_misspelt_flag_names_the_right_one(words: tuple[str, ...], verb: Any) -> None:
    flags = [name for one in verb.params for name in one.opts if name.startswith("--")]
    for flag in flags:
        wrong = flag[:-2] + flag[-1] + flag[-2] + "x"  # letters turned round, one too many
        said = line_of(nestling(*words, wrong), 2)
        assert said.startswith(f"no such option {wrong}"), said
        if len(flag) > len("--spec"):
            assert said.endswith("?"), said


@pytest.mark.parametrize("words", [one for one, _ in verbs() if one])
def test_a_misspelt_verb_names_the_right_one(words: tuple[str, ...]) -> None:
    said = line_of(nestling(*words[:-1], words[-1] + "x"), 2)
    assert said.startswith(f"no such command {words[-1]}x"), said
    if len(words[-1]) > len("rm"):
        assert said.endswith(f"; did you mean {words[-1]}?"), said


# Values.


@pytest.fixture
def base(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["F16"]


SETS: dict[str, tuple[list[str], str]] = {
    "embed engine": (
        ["embed", "a", "--engine", "opnvino"],
        "engine='opnvino': expected one of auto, openvino, llamacpp, torch, reference; did you mean openvino?",
    ),
    "similarity engine": (["similarity", "a", "b", "--engine", "tourch"], "; did you mean torch?"),
    "rerank engine": (["rerank", "a", "b", "--engine", "lamacpp"], "; did you mean llamacpp?"),
    "serve engine": (
        ["serve", "--engine", "opnvino"],
        "--engine=opnvino: expected one of auto, openvino, llamacpp, torch, reference; did you mean openvino?",
    ),
    "quality engine": (
        ["eval", "quality", "BASE", "--engine", "refrence"],
        "; did you mean reference?",
    ),
    "speed engine": (["eval", "speed", "BASE", "--engine", "refrence"], "; did you mean reference?"),
    "arithmetic": (["embed", "a", "--model", "BASE", "--arithmetic", "bf61"], "; did you mean bf16?"),
    "serve arithmetic": (["serve", "--arithmetic", "int8-row"], "; did you mean int8-rows?"),
    "device": (
        ["embed", "a", "--device", "cude"],
        "device='cude': expected cuda[:N], xpu[:N], mps or cpu; did you mean cuda?",
    ),
    "serve device": (
        ["serve", "--device", "cude"],
        "--device=cude: expected cuda[:N], xpu[:N], mps or cpu; did you mean cuda?",
    ),
    "serve token input": (
        ["serve", "--token-input", "modle"],
        "--token-input=modle: expected one of reject, model, cl100k; did you mean model?",
    ),
    "serve dialect": (["serve", "--dialect", "openia"], "; did you mean openai?"),
    "embed task": (
        ["embed", "a", "--task", "retreival"],
        "task='retreival': expected one of retrieval, text-matching, code; did you mean retrieval?",
    ),
    "similarity task": (["similarity", "a", "b", "--task", "text_matching"], "; did you mean text-matching?"),
    "rerank task": (["rerank", "a", "b", "--task", "Code"], "; did you mean code?"),
    "build task": (["build", "--task", "retreival"], "; did you mean retrieval?"),
    "convert task": (["convert", "starter", "--task", "retreival", "--out", "OUT"], "; did you mean retrieval?"),
    "multivector task": (["multivector", "starter", "--task", "retreival"], "; did you mean retrieval?"),
    "publish task": (["publish", "FOLDER", "org/repo", "--task", "retreival"], "; did you mean retrieval?"),
    "quality task": (["eval", "quality", "BASE", "--task", "retreival"], "; did you mean retrieval?"),
    "bulk task": (["bulk", "CORPUS", "--out", "OUT", "--task", "retreival"], "; did you mean retrieval?"),
    "embed prompt": (
        ["embed", "a", "--model", "BASE", "--engine", "reference", "--prompt", "qury"],
        "prompt_name='qury': expected one of query, passage, raw; did you mean query?",
    ),
    "bulk prompt": (["bulk", "CORPUS", "--out", "OUT", "--prompt", "pasage"], "; did you mean passage?"),
    "bulk engine": (
        ["bulk", "CORPUS", "--out", "OUT", "--engine", "locl"],
        "engine='locl': expected one of local, ray; did you mean local?",
    ),
    "bulk backend": (["bulk", "CORPUS", "--out", "OUT", "--backend", "opnvino"], "; did you mean openvino?"),
    "bulk sink": (
        ["bulk", "CORPUS", "--out", "OUT", "--sink", "lanse"],
        "sink='lanse': expected one of parquet, lance; did you mean lance?",
    ),
    "bulk type": (
        ["bulk", "CORPUS", "--out", "OUT", "--embedding-type", "flaot"],
        "embedding_type='flaot': expected one of float, float16, int8, binary; did you mean float?",
    ),
    "format": (
        ["embed", "a", "--format", "jsno"],
        "format='jsno': expected one of text, array, json, jsonl, npy; did you mean json?",
    ),
    "scoring": (
        ["rerank", "a", "b", "--model", "BASE", "--engine", "reference", "--scoring", "cosin"],
        "scoring='cosin': expected one of maxsim, cosine; did you mean cosine?",
    ),
    "quantize type": (["quantize", "BASE", "Q4_KM", "--out", "OUT"], "; did you mean Q4_K_M?"),
    "build type": (["build", "--quant", "Q8_0,iq3-s"], "; did you mean IQ3_S?"),
    "convert type": (
        ["convert", "starter", "--task", "code", "--out", "OUT", "--quant", "FP16"],
        "; did you mean F16?",
    ),
    "tensor type": (
        ["quantize", "BASE", "Q8_0", "--out", "OUT", "--tensor-type", "ffn_down=Q6K"],
        "tensor_type='Q6K': expected one of ",
    ),
    "embedding's type": (
        ["quantize", "BASE", "Q8_0", "--out", "OUT", "--token-embedding-type", "q6k"],
        "; did you mean Q6_K?",
    ),
    "kept embedding": (
        ["quantize", "BASE", "--target-bpw", "5", "--imatrix", "MATRIX", "--out", "OUT", "--keep-embedding", "Q80"],
        "; did you mean Q8_0?",
    ),
    "set": (["eval", "quality", "BASE", "--benchmark", "perlfaq"], "; did you mean perlfaq-en?"),
    "NanoBEIR set": (["eval", "quality", "BASE", "--benchmark", "NanoSciFct"], "; did you mean NanoSciFact?"),
}  # fmt: skip


@pytest.fixture
def words(base: Path, tmp_path: Path, cache_folder: Path) -> dict[str, str]:
    """What the upper-case words of the table stand for."""
    assert cache_folder.is_dir()
    (tmp_path / "folder").mkdir()
    shutil.copy(base, tmp_path / "folder" / "mine-text-code-F16.gguf")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "a beach"}\n')
    names = {"BASE": base, "OUT": tmp_path / "out", "FOLDER": tmp_path / "folder", "CORPUS": corpus}
    return {name: str(path) for name, path in names.items()}


@pytest.mark.parametrize(("arguments", "said"), [pytest.param(*one, id=name) for name, one in SETS.items()])
def test_a_word_of_a_closed_set(words: dict[str, str], arguments: list[str], said: str) -> None:
    done = nestling(*(words.get(one, one) for one in arguments))
    line = line_of(done, 1 if arguments[:2] == ["eval", "quality"] and "--benchmark" in arguments else 2)
    assert said in line
    assert "did you mean" in line or said.endswith("expected one of ")
    assert not Path(words["OUT"]).exists()


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [("ENGINE", "opnvino", "openvino"), ("TOKEN_INPUT", "modle", "model"),
     ("DEVICE", "cude", "cuda")],
)  # fmt: skip
def test_a_word_in_a_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str, near: str) -> None:
    monkeypatch.setenv(f"NESTLING_{name}", value)
    said = line_of(nestling("serve"), 2)
    assert said.startswith(f"NESTLING_{name}={value}: expected ")
    assert said.endswith(f"; did you mean {near}?")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "task",
            "retreival",
            "task='retreival': expected one of retrieval, text-matching, code; did you mean retrieval?",
        ),
        ("pooling", "mena", "pooling='mena': expected one of mean, last; did you mean mean?"),
        (
            "prefixes",
            {"query": "a", "pasage": "b"},
            "prefixes='pasage': expected one of query, passage, raw; did you mean passage?",
        ),
        (
            "dimension",
            [64],
            "prefixes, pooling, source; did you mean dimensions?",
        ),
    ],
)
def test_a_word_in_a_specification(base: Path, tmp_path: Path, field: str, value: object, said: str) -> None:
    sound = {"family": "mine", "task": "code", "dimensions": [64], "max_tokens": 64, "pooling": "mean"}
    sound["prefixes"] = {"query": "", "passage": ""}
    (tmp_path / "spec.json").write_text(json.dumps(sound | {field: value}))
    assert line_of(nestling("embed", "a", "--model", base, "--spec", tmp_path / "spec.json"), 1).endswith(said)


# Variables.

VARIABLES = [variable(name) for name in SETTINGS] + [CACHE_VARIABLE, LIMIT_VARIABLE, KEY_VARIABLE]


def test_the_variables_of_other_parts_are_known() -> None:
    assert {f"NESTLING_{one}" for one in OTHERS} == {CACHE_VARIABLE, LIMIT_VARIABLE, KEY_VARIABLE}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_misspelt_variable_names_the_right_one(name: str) -> None:
    check_variables({name: "x"})
    for wrong in (name + "S", name[:-2] + name[-1] + name[-2], name.lower().upper()[:-1]):
        if wrong not in VARIABLES and len(name) > len("NESTLING_UDS"):
            with pytest.raises(errors.UsageError, match=f"^{wrong}: no such variable; did you mean NESTLING_"):
                check_variables({wrong: "x"})


@pytest.mark.parametrize("verb", [["embed", "a"], ["list"], ["eval", "quality", "x"], ["serve"]])
def test_every_command_looks_at_the_variables(monkeypatch: pytest.MonkeyPatch, verb: list[str]) -> None:
    monkeypatch.setenv("NESTLING_CAHCE", "/nowhere")
    assert line_of(nestling(*verb), 2) == "NESTLING_CAHCE: no such variable; did you mean NESTLING_CACHE?"


# References.


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("startr", "; did you mean starter?"),
        ("startr-retrieval", "; did you mean starter"),
        ("starter-retreival", "; did you mean starter-retrieval?"),
        ("starter-retrieval:Q4_KM", "; did you mean Q4_K_M?"),
        ("jina-v5-code:Q8_0", "; did you mean jina-v4"),
    ],
)
@pytest.mark.parametrize(
    "verb",
    [
        ["embed", "a", "--model"],
        ["show"],
        ["inspect"],
        ["verify"],
        ["eval", "speed"],
        ["bulk", "CORPUS", "--out", "OUT", "--model"],
        ["quantize"],
    ],
    ids=" ".join,
)
def test_a_misspelt_reference(words: dict[str, str], verb: list[str], reference: str, said: str) -> None:
    more = ["Q8_0", "--out", words["OUT"]] if verb == ["quantize"] else []
    done = nestling(*(words.get(one, one) for one in verb), reference, *more)
    assert said in line_of(done, done.code)
    assert done.code in (1, 2)


def test_a_misspelt_name_of_the_original() -> None:
    with pytest.raises(errors.NestlingError, match="did you mean"):
        JinaEmbeddingsV4.from_pretrained("jinaai/jina-embedings-v4")
