"""No silent replacement of an engine. Doors by which another one could answer, each with its test:

    `--engine openvino` that cannot be loaded, in every verb that has it     test_openvino_by_name_is_never_another
    the same in the processes of `bulk`, and in `serve`                      test_..._in_other_processes
    `auto` that takes llama.cpp                      test_auto_says_that_it_takes_another (each verb), test_a_server_...
    `auto` on the normal path                        test_auto_says_which_engine_it_took_once_...
    an engine that is loaded anew after a failure    test_a_reset_stays_in_the_same_engine
    a job that is resumed elsewhere                  a bulk job names its engine: test_a_bulk_job_has_no_auto
    the library, the device, `show` without loading  test_engines, test_torch

`auto` does fall back where OpenVINO is missing, does not run here or fails on a file: it is asked for whatever runs. It
says so wherever a caller can look, and does not change its mind while a model is in memory.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.command_line import nestling
from tests.contract.serving import FakeEngine, fake_embedder, running, settings

from nestling.bulk.settings import JobSpec
from nestling.engine.openvino import engine as openvino_engine
from nestling.errors import EngineError, UsageError
from nestling.models.embedder import Embedder
from nestling.server.core.loading import loader as real_loader
from nestling.server.core.model_pool import ModelPool
from nestling.server.core.replicas import ONE_DEVICE, Model

TOOK = (
    "nestling: engine openvino (auto: the fastest engine on this processor; in int8-groups: groups of 32, the finest)\n"
)
INSTEAD = "nestling: engine llamacpp, which is slower, in place of openvino: "
PAIRS = "sentence1\tsentence2\tscore\na beach\ta shore\t5\na beach\ta tax\t0\na cat\ta kitten\t4\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, starter_q8: Path) -> Path:
    assert starter_q8.exists()
    folder = tmp_path_factory.mktemp("place")
    (folder / "pairs.tsv").write_text(PAIRS)
    (folder / "rows.jsonl").write_text('{"id": "a", "text": "a beach"}\n')
    return folder


def verbs(place: Path, out: Path = Path("results")) -> dict[str, list[str]]:
    quality = ["eval", "quality", "starter-retrieval", "--benchmark", str(place / "pairs.tsv")]
    return {
        "embed": ["embed", "hi"],
        "similarity": ["similarity", "a beach", "a shore", "--model", "starter-retrieval"],
        "rerank": ["rerank", "a beach", "a shore", "a tax"],
        "eval": [*quality, "--out", str(out)],
    }


VERBS = sorted(verbs(Path()))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO fails on every file."""

    def load(*_arguments: object, **_named: object) -> Any:
        raise RuntimeError("no\nprocessor")

    monkeypatch.setattr(openvino_engine, "OpenVINOEngine", load)


@pytest.mark.parametrize("verb", VERBS)
def test_auto_says_which_engine_it_took_once_and_standard_output_is_as_ever(
    place: Path, tmp_path: Path, verb: str
) -> None:
    command = verbs(place, tmp_path)[verb]
    auto, named = nestling(*command), nestling(*command, "--engine", "openvino")
    assert (auto.code, named.code) == (0, 0), auto.err + named.err
    assert auto.err == TOOK
    assert named.err == ""
    if verb != "eval":  # its table has the time
        assert auto.raw == named.raw


def test_a_command_that_fails_says_why_in_one_line(place: Path) -> None:
    done = nestling("embed", "hi", "--dimensions", "3")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "dimension" in done.err


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("verb", VERBS)
def test_openvino_by_name_is_never_another(place: Path, tmp_path: Path, verb: str) -> None:
    done = nestling(*verbs(place, tmp_path)[verb], "--engine", "openvino")
    assert (done.code, done.raw, done.err.count("\n")) == (1, b"", 1)
    assert "openvino failed: no processor" in done.err


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("verb", VERBS)
def test_auto_says_that_it_takes_another(place: Path, tmp_path: Path, verb: str) -> None:
    from nestling.engine import registry

    registry._warn_once.cache_clear()
    done = nestling(*verbs(place, tmp_path)[verb])
    assert (done.code, done.err.count("\n")) == (0, 1), done.err
    assert done.err.startswith(INSTEAD)
    assert done.err.endswith("openvino failed: no processor\n")


@pytest.mark.usefixtures("broken")
def test_a_server_says_that_it_has_another_and_by_name_it_does_not_start(starter_q8: Path) -> None:
    wanted = settings(model=(str(starter_q8),))
    with running(real_loader(wanted), model=wanted.model) as server:
        assert httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}, timeout=60).status_code == 200
        [engine] = httpx.get(f"{server.url}/v1/models", timeout=60).json()["engines"]
        metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert engine["engine"] == "llamacpp"
    assert "openvino cannot be loaded: " in engine["reason"]
    assert "nestling_models_in_another_engine 1.0" in metrics
    assert 'nestling_model_engine{device="cpu",engine="llamacpp"' in metrics
    with pytest.raises(EngineError, match="openvino failed: no processor"):
        real_loader(settings(engine="openvino"))(str(starter_q8))


def test_a_server_says_which_engine_it_has() -> None:
    with running() as server:
        [engine] = httpx.get(f"{server.url}/v1/models", timeout=20).json()["engines"]
        metrics = httpx.get(f"{server.url}/metrics", timeout=20).text
    assert engine == {"model": "fake-retrieval:Q8_0", "engine": "fake", "device": "cpu", "reason": "a test's"}
    expected = 'nestling_model_engine{device="cpu",engine="fake",model="fake-retrieval:Q8_0",reason="a test\'s"} 1.0'
    assert expected in metrics.splitlines()


def test_a_reset_stays_in_the_same_engine() -> None:
    engines = iter([FakeEngine(name="first"), FakeEngine(name="second"), FakeEngine(name="first")])
    made: list[FakeEngine] = []

    def load(_reference: str) -> Embedder:
        made.append(next(engines))
        return fake_embedder(engine=made[-1])

    pool = ModelPool({ONE_DEVICE: load}, budget_bytes=1)
    model = Model("m", {ONE_DEVICE: load("m")})
    with pytest.raises(EngineError, match="m: first cannot load it again, and it is not replaced by another"):
        pool.reset(model, ONE_DEVICE)
    assert made[1].closed
    pool.reset(model, ONE_DEVICE)
    assert model.embedder.engine is made[2]


def test_a_bulk_job_has_no_auto() -> None:
    with pytest.raises(UsageError, match="expected the name of one engine"):
        JobSpec("starter-retrieval", backend="auto")


# Other processes, in which the package is broken.


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> dict[str, str]:
    """An environment in which `import openvino` fails."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "openvino").mkdir()
    (folder / "openvino" / "__init__.py").write_text('raise ImportError("a broken installation")\n')
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "NESTLING_CACHE": str(cache_folder)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from nestling.cli import main; main()", *arguments]


@pytest.mark.parametrize("verb", ["bulk", "serve"])
def test_openvino_by_name_is_never_another_in_other_processes(place: Path, environ: dict[str, str], verb: str) -> None:
    arguments = {
        "bulk": ["bulk", str(place / "rows.jsonl"), "--out", str(place / "vectors")],
        "serve": ["serve", "--engine", "openvino", "--port", "0"],
    }
    done = subprocess.run(
        command(*arguments[verb]), env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "openvino is not installed (a broken installation)" in done.stderr.splitlines()[-1]
    assert "llamacpp" not in done.stderr
    assert not list((place / "vectors").glob("shards/*"))


@pytest.fixture
def served(environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("serve", "--port", "0"), env=environ, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_servers_log_says_it_in_json(served: "subprocess.Popen[str]") -> None:
    assert served.stdout
    assert served.stderr
    assert "http://" in served.stdout.readline()
    served.send_signal(signal.SIGTERM)
    assert served.wait(60) == 0
    said = [json.loads(line) for line in served.stderr.read().splitlines()]
    [loaded] = [line for line in said if line["event"] == "model loaded"]
    assert (loaded["engine"], loaded["reason"][:31]) == ("llamacpp", "auto: openvino cannot be loaded")
    [warned] = [line for line in said if line["level"] == "warning"]
    assert warned["event"].startswith("engine llamacpp, which is slower, in place of openvino: ")
