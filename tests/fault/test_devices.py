"""A device that is misspelt, missing or not the engine's, at every door: one line, and never the CPU in its place.

    Embedder.load, JinaEmbeddingsV4            test_a_wrong_device_from_python
    embed, similarity, rerank                  test_a_wrong_device_for_a_command
    serve, by flag and by variable             test_wrong_devices_for_a_server
    eval quality, eval speed, imatrix          the same; what results say of it: test_results_name_the_device
    one device where several are expected, and several where one is        test_lists_of_devices, test_several_...

What a card does wrong once it is there (memory, faults, no bfloat16) is in test_torch.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.command_line import nestling

from nestling.compat import JinaEmbeddingsV4
from nestling.engine.names import parse_device, parse_devices
from nestling.errors import EngineError, NestlingError, UsageError
from nestling.evaluation import results
from nestling.evaluation.results import QualityResult, SpeedResult
from nestling.evaluation.settings import QualitySettings, SpeedSettings
from nestling.models.embedder import Embedder

WRONG = {
    "misspelt": ("torch", "gpu", 2, "expected cuda[:N], xpu[:N], mps or cpu"),
    "empty": ("torch", "", 2, "expected cuda[:N], xpu[:N], mps or cpu"),
    "a number with zeros": ("torch", "cuda:01", 2, "expected cuda[:N], xpu[:N], mps or cpu"),
    "several": ("torch", "cuda:0,cuda:1", 2, "several devices are for `nestling serve` and `nestling bulk`"),
    "not there": ("torch", "cuda:9", 1, "docs/gpu.md says what to install"),
    "not there, auto": ("auto", "cuda", 1, "docs/gpu.md says what to install"),
    "none": ("torch", None, 1, "no GPU: "),
    "openvino's": ("openvino", "cuda", 2, "device='cuda': the openvino engine runs on the cpu"),
    "llama.cpp's": ("llamacpp", "cuda:0", 2, "device='cuda:0': the llamacpp engine runs on the cpu"),
    "the reference's": ("reference", "mps", 2, "device='mps': the reference engine runs on the cpu"),
}
"""Engine, device, exit code, what is said."""
COMMANDS: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "embed": lambda model, _: ["embed", "a", "--model", model],
    "similarity": lambda model, _: ["similarity", "a", "b", "--model", model],
    "rerank": lambda model, _: ["rerank", "a", "b", "--model", model, "--scoring", "cosine"],
    "eval quality": lambda model, out: ["eval", "quality", model, "--out", out],
    "eval speed": lambda model, out: ["eval", "speed", model, "--out", out],
    "imatrix": lambda model, out: ["imatrix", model, "--out", out / "m.gguf"],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_device_for_a_command(tiny_models: dict[str, Path], tmp_path: Path, command: str, wrong: str) -> None:
    engine, device, code, said = WRONG[wrong]
    named = [] if device is None else ["--device", device]
    done = nestling(*COMMANDS[command](tiny_models["F32"], tmp_path / "out"), "--engine", engine, *named)
    assert (done.code, done.raw, done.err.count("\n")) == (code, b"", 1), done
    assert said in done.err or (command == "imatrix" and "expected one of auto, openvino, torch" in done.err)
    assert not list(tmp_path.glob("out/*"))


DOORS: dict[str, Callable[[Path, str, str | None], object]] = {
    "Embedder.load": lambda model, engine, device: Embedder.load(model, engine=engine, device=device),
    "JinaEmbeddingsV4": lambda _, engine, device: JinaEmbeddingsV4.from_pretrained(
        "starter", engine=engine, device=device
    ).encode_text("a", task="code"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("door", DOORS)
def test_a_wrong_device_from_python(tiny_models: dict[str, Path], door: str, wrong: str) -> None:
    engine, device, code, said = WRONG[wrong]
    with pytest.raises(NestlingError) as caught:
        DOORS[door](tiny_models["F32"], engine, device)
    assert type(caught.value) is (UsageError if code == 2 else EngineError)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["quality", "speed"])
def test_a_device_for_servers_alone_is_refused(tmp_path: Path, command: str) -> None:
    done = nestling("eval", command, "http://127.0.0.1:9/v1#m/code", "--device", "cpu", "--out", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "device='cpu': is for local models; a server chooses its own" in done.err


def test_results_name_the_device(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """So that those of two devices do not overwrite, or stand for, each other."""
    options: list[str | Path] = ["--engine", "torch", "--device", "cpu", "--out", tmp_path]
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\ne\tf\t3\n")
    few = ["--rounds", "1", "--length", "16", "--pass-tokens", "16", "--cell-seconds", "0"]
    assert nestling("eval", "quality", tiny_models["F32"], "--benchmark", pairs, *options).code == 0
    assert nestling("eval", "speed", tiny_models["F32"], "--engine", "openvino", *few, *options).code == 0
    found = {path.name: results.read(path) for path in tmp_path.glob("*.json")}
    assert {name: one.engine for name, one in found.items()} == {
        "quality-tiny-F32-torch-on-cpu-pairs.json": "torch on cpu",
        "speed-tiny-F32-torch-on-cpu.json": "torch on cpu",
        "speed-tiny-F32-openvino-on-cpu.json": "openvino on cpu",
    }
    assert {type(one) for one in found.values()} == {QualityResult, SpeedResult}


def test_a_card_is_for_those_engines_of_a_comparison_that_have_cards(tmp_path: Path) -> None:
    settings = SpeedSettings(tmp_path, engines=("openvino", "torch", "auto"), device="cuda:1")
    assert [settings.device_of(one) for one in settings.engines] == [None, "cuda:1", "cuda:1"]
    assert QualitySettings(tmp_path, engine="torch", device="cuda:1").runs_on == "torch on cuda:1"
    assert QualitySettings(tmp_path).runs_on == "auto"


LISTS = {
    "cuda:0,cuda:0": "cuda:0 is named twice; expected different devices",
    "mps,mps": "mps is named twice; expected different devices",
    "cuda:0,cpu": "expected devices of one kind, found cuda and cpu, whose vectors differ",
    "cuda:0,xpu:1": "expected devices of one kind, found cuda and xpu, whose vectors differ",
    "cuda,cuda:1": "expected numbered devices, as in cuda:0,cuda:1",
    "cuda:0,": "expected cuda[:N], xpu[:N], mps or cpu, several separated by commas",
    ",": "expected cuda[:N], xpu[:N], mps or cpu, several separated by commas",
    "cuda:0, cuda:1": "expected cuda[:N], xpu[:N], mps or cpu, several separated by commas",
    "cuda:0,gpu": "expected cuda[:N], xpu[:N], mps or cpu, several separated by commas",
    "cude": "expected cuda[:N], xpu[:N], mps or cpu; did you mean cuda?",
}


@pytest.mark.parametrize("text", LISTS)
def test_lists_of_devices(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_devices(text)
    assert str(caught.value) == f"device={text!r}: {LISTS[text]}"
    assert caught.value.param == "device"


@pytest.mark.parametrize("text", LISTS)
def test_wrong_devices_for_a_server(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    done = nestling("serve", "--device", text)
    assert (done.code, done.raw, done.err) == (2, b"", f"nestling: --device={text}: {LISTS[text]}\n")
    monkeypatch.setenv("NESTLING_DEVICE", text)
    assert nestling("serve").err == f"nestling: NESTLING_DEVICE={text}: {LISTS[text]}\n"


def test_several_devices() -> None:
    assert parse_devices("cuda:1,cuda:0") == ("cuda:1", "cuda:0")
    assert parse_devices("cpu,cpu") == ("cpu", "cpu"), "each with its share of the processors"
    assert parse_devices("xpu") == ("xpu",)
    with pytest.raises(UsageError, match="several devices are for"):
        parse_device("cpu,cpu")
