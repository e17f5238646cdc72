"""Which arithmetic a file takes: by rule, by a trial that is remembered, by name; and kernels that are wrong are seen.

Doors by which a wrong kernel could answer, each tested: the arithmetic that was chosen (the next one is taken, with a
warning), all of them (`auto` goes to llama.cpp, an engine asked for by name is an error), one asked for by name.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.command_line import nestling

from nestling._util import files
from nestling.engine import registry, self_check
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.names import EngineName
from nestling.engine.openvino import choice, processor
from nestling.engine.openvino.choice import Trial
from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.processor import CAP, Processor
from nestling.engine.protocol import plain
from nestling.engine.registry import load_engine
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.vectors import Floats

GROUPS, ROWS = ArithmeticName.INT8_GROUPS, ArithmeticName.INT8_ROWS
IDS = plain([np.arange(5, 40, dtype=np.int32)])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    return tmp_path / "expanded" / "trials.json"


@pytest.fixture
def file(tiny_models: dict[str, Path]) -> GGUFFile:
    return GGUFFile.open(tiny_models["Q4_K_M"])


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "kind", lambda: Processor.OTHER)


@pytest.mark.parametrize(
    ("file_type", "name", "why"),
    [("F16", "float32", "a float file"), ("Q8_0", "int8-groups", "groups of 32, the finest")],
)
def test_float_and_fine_files_have_no_choice(
    tiny_models: dict[str, Path], home: Path, unknown: None, file_type: str, name: str, why: str
) -> None:
    found = choice.choose(GGUFFile.open(tiny_models[file_type]), threads=1)
    assert (found.name, why in found.reason, home.exists()) == (name, True, False)


@pytest.mark.parametrize("kind", [one for one in Processor if one is not Processor.OTHER])
def test_measured_processors_have_a_rule(
    file: GGUFFile, home: Path, monkeypatch: pytest.MonkeyPatch, kind: Processor
) -> None:
    monkeypatch.setattr(processor, "kind", lambda: kind)
    assert choice.choose(file, threads=1) == choice.Choice(choice.RULES[kind], f"the fastest on {kind}")
    assert not home.exists()


def test_others_try_once_and_remember(
    file: GGUFFile, home: Path, unknown: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choice.expected(file, threads=1) is None
    first = choice.choose(file, threads=1)
    assert first.reason.startswith("by trial, a layer of 512 tokens: float32 ")
    assert all(name in first.reason for name in choice.TRIED)

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(choice, "_layer", never)
    assert choice.choose(file, threads=1) == first
    assert choice.expected(file, threads=2) is None, "other threads, another trial"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', '{"x": {"int8-groups": {}}}', '{"x": {"y": 1}}'])
def test_spoilt_trials_are_made_again(file: GGUFFile, home: Path, unknown: None, content: str) -> None:
    home.parent.mkdir()
    home.write_text(content)
    choice.choose(file, threads=1)
    assert len(json.loads(home.read_text())) == 1


def test_a_trial_that_was_asked_for_goes_before_the_rule(
    file: GGUFFile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "kind", lambda: Processor.AVX2)
    trials = {ArithmeticName.FLOAT32: (3.0, 0.0), GROUPS: (2.0, 0.5), ROWS: (1.0, 0.5)}
    exact = np.ones((1, 1), np.float32)

    def layer(_: GGUFFile, arithmetic: object, __: int) -> tuple[float, Floats]:
        seconds, error = trials.get(arithmetic.name, (9.0, 9.0))  # type: ignore[attr-defined]
        return seconds, exact * (1 + np.float32(error))

    monkeypatch.setattr(choice, "_layer", layer)
    assert choice.tune(file, threads=1).name is ROWS
    assert choice.choose(file, threads=1).name is ROWS
    assert home.exists()


@pytest.mark.parametrize(
    ("rows", "float32", "expected"),
    [
        (Trial(0.5, 1e-4), Trial(3.0, 0.0), "int8-rows"),
        (Trial(0.5, 1.1e-4), Trial(3.0, 0.0), "int8-groups"),
        (Trial(2.0, 1e-5), Trial(0.9, 0.0), "int8-groups"),
        (Trial(2.0, 1e-5), Trial(0.7, 0.0), "float32"),
    ],
    ids=["faster and as exact", "faster, less exact", "float32 a little faster", "float32 much faster"],
)
def test_speed_never_costs_exactness_nor_a_little_of_it_memory(rows: Trial, float32: Trial, expected: str) -> None:
    tried = {"float32": float32, "int8-groups": Trial(1.0, 1e-4), "int8-rows": rows}
    assert choice._winner(tried).name == expected


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        ("AVX512_CORE_VNNI", "in int8-groups: the fastest on AVX-512 VNNI"),
        ("AVX2", "in float32: as asked"),  # where there is AVX-512, int8 groups answer with nothing under this cap
    ],
)
def test_the_choice_under_a_cap_answers_as_the_reference_does(file: GGUFFile, cap: str, expected: str) -> None:
    if processor.kind() not in (Processor.AMX, Processor.AVX512_VNNI):
        pytest.skip("this processor is older than the caps")
    code = (
        "import sys; from pathlib import Path; from nestling.engine.names import *;"
        "from nestling.engine.registry import *;"
        "from nestling.formats.gguf import GGUFFile;"
        "print(load_engine(GGUFFile.open(Path(sys.argv[1])), name=EngineName.OPENVINO, threads=1).reason)"
    )
    command, environment = [sys.executable, "-c", code, str(file.path)], os.environ | {CAP: cap}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, f"asked for by name; {expected}\n"), done.stderr
    assert ("openvino's self-check failed in int8-groups" in done.stderr) is (cap == "AVX2")


def test_a_wrong_kernel_is_passed_over_with_a_warning(
    file: GGUFFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(choice.RULES, processor.kind(), ROWS)
    break_kernels(monkeypatch, ROWS)
    with caplog.at_level(logging.WARNING):
        engine = load_engine(file, name=EngineName.AUTO, device="cpu", threads=1)
    assert engine.arithmetic is GROUPS  # type: ignore[attr-defined]
    assert "in int8-rows" in caplog.text
    assert "cosine 0.000 to the reference, expected at least 0.98; falling back to int8-groups" in caplog.text


def test_when_all_kernels_are_wrong_openvino_is_not_taken(
    file: GGUFFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_kernels(monkeypatch, *ArithmeticName)
    with pytest.raises(EngineError, match=r"in int8-groups: .*cosine 0\.000 to the reference"):
        load_engine(file, name=EngineName.OPENVINO, threads=1)
    assert load_engine(file, name=EngineName.AUTO, device="cpu", threads=1).name == "llamacpp"
    assert "in place of openvino" in caplog.text


def test_one_asked_for_by_name_is_never_replaced(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    break_kernels(monkeypatch, ROWS)
    for name in (EngineName.AUTO, EngineName.OPENVINO):
        with pytest.raises(EngineError, match="in int8-rows: as asked"):
            load_engine(file, name=name, device="cpu", threads=1, arithmetic=ROWS)


def break_kernels(monkeypatch: pytest.MonkeyPatch, *broken: ArithmeticName) -> None:
    """Answer with zeros in these arithmetics, as a plugin on a processor that it does not know might."""
    registry._warn_once.cache_clear()
    whole = OpenVINOEngine._final

    def final(self: OpenVINOEngine, states: Floats) -> Floats:
        return whole(self, states) * np.float32(self.arithmetic not in broken)

    monkeypatch.setattr(OpenVINOEngine, "_final", final)


def test_show_says_what_is_taken_and_tunes_when_asked(file: GGUFFile, home: Path) -> None:
    shown = json.loads(nestling("show", file.path, "--json").raw)["engine"]
    assert shown["arithmetic"] == choice.RULES[processor.kind()]
    assert not home.exists()
    tuned = json.loads(nestling("show", file.path, "--tune", "--json").raw)["engine"]
    assert tuned["arithmetic_reason"].startswith("by trial")
    assert json.loads(nestling("show", file.path, "--json").raw)["engine"] == tuned


@pytest.mark.parametrize("name", [EngineName.LLAMACPP, EngineName.REFERENCE])
def test_engines_without_a_choice_refuse_one(file: GGUFFile, name: EngineName) -> None:
    with pytest.raises(UsageError, match=f"arithmetic='int8-rows': expected auto with the engine {name}"):
        load_engine(file, name=name, arithmetic=ROWS)


def test_an_unknown_name_says_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"^arithmetic='int8': expected one of auto, float32, bf16, int8-groups"):
        ArithmeticName.parse("int8")


def test_a_shape_that_cannot_be_rotated_says_why(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "misfit", lambda _: "head size 80 is not a multiple of 32")
    with pytest.raises(UsageError, match="cannot be rotated: head size 80"):
        choice.named(file, ROWS)
    assert choice.choose(file, threads=1).reason == "no rotation: head size 80 is not a multiple of 32"


def test_the_references_states_are_kept_and_spoilt_ones_made_again(file: GGUFFile, tmp_path: Path) -> None:
    kept, engine = tmp_path / "states.npy", OpenVINOEngine(file, threads=1)
    first = self_check.cosine(engine, file, adapters=[], threads=1, kept=kept)
    assert first > 0.999
    before = kept.read_bytes()
    kept.write_bytes(before[:100])
    assert self_check.cosine(engine, file, adapters=[], threads=1, kept=kept) == first
    assert kept.read_bytes() == before
    np.save(kept, -np.load(kept))
    assert self_check.cosine(engine, file, adapters=[], threads=1, kept=kept) < -0.99, "the kept states are used"


def test_a_file_with_weights_that_are_not_finite_is_left_to_others_to_refuse(
    file: GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "reference", lambda *_, **__: np.full((self_check.TOKENS, 256), np.nan))
    engine = load_engine(file, name=EngineName.OPENVINO, threads=1)
    assert np.isfinite(engine.pool(IDS)).all()
