"""Corpus jobs on devices: a worker for each, the same bytes whichever of them computes, and what is refused.

Doors: the settings in Python and on the command line (test_wrong_devices, test_wrong_devices_by_command), the workers
of this machine (test_two_devices_...), Ray's (test_on_ray_...), resuming (test_what_a_device_is_to_a_job), searching
(test_search_...). Cards are simulated: by settings alone, and by resources that a Ray is told it has.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.command_line import nestling
from tests.corpora import contents, parquet, rows

from nestling import bulk
from nestling.bulk import manifest
from nestling.errors import BuildError, EngineError, UsageError
from nestling.models.embedder import Embedder

TORCH = {"backend": "torch", "device": "cpu"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return parquet(tmp_path / "corpus.parquet", rows(25))


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> str:
    return str(tiny_models["Q4_K_M"])


def run(corpus: Path, model: str, out: str, what: dict[str, Any], **how: Any) -> bulk.Outcome:
    spec = bulk.JobSpec(model, shard_rows=5, **what)
    return bulk.run([str(corpus)], corpus.parent / out, spec, bulk.RunOptions(threads=1, **how))


def settings_of(folder: Path) -> Any:
    return json.loads((folder / manifest.JOB).read_text())["settings"]


def test_two_devices_make_the_bytes_of_one(corpus: Path, model: str) -> None:
    assert run(corpus, model, "one", TORCH).rows == 25
    assert run(corpus, model, "two", TORCH, device="cpu,cpu").rows == 25
    assert contents(corpus.parent / "one") == contents(corpus.parent / "two")
    assert (settings_of(corpus.parent / "two")["arithmetic"], settings_of(corpus.parent / "two")["device"]) == (
        "float32",
        "cpu",
    )


def test_each_worker_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch, corpus: Path, model: str) -> None:
    given: list[Any] = []

    def in_processes(_setup: Any, shards: Any, *, devices: Any, ticked: Any) -> Iterator[Any]:
        given.append(devices)
        return iter(())

    monkeypatch.setattr("nestling.bulk.local._in_processes", in_processes)
    cards: dict[str, Any] = {"backend": "torch", "device": "cuda"}
    run(corpus, model, "cards", cards, device="cuda:1,cuda:0")
    run(corpus, model, "same", TORCH, workers=3)
    assert given == [("cuda:1", "cuda:0"), ("cpu", "cpu", "cpu")]
    assert settings_of(corpus.parent / "cards")["device"] == "cuda", "their numbers are not part of the job"
    assert settings_of(corpus.parent / "cards")["arithmetic"] == "bf16"


def test_what_a_device_is_to_a_job(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine, kind of device and arithmetic determine the bytes; a card's number does not."""
    loads: list[Any] = []

    def load(*_: Any, **options: Any) -> Embedder:
        loads.append((options["device"], options["arithmetic"]))
        raise EngineError("a card that is not there")

    monkeypatch.setattr(Embedder, "load", load)
    cards: dict[str, Any] = {"backend": "torch", "device": "cuda"}
    for how in ({}, {"device": "cuda:1"}, {"device": "cuda:0"}):
        with pytest.raises(EngineError, match="a card that is not there"):
            run(corpus, model, "out", cards, **how)
    assert loads == [("cuda", "bf16"), ("cuda:1", "bf16"), ("cuda:0", "bf16")]
    for other, name in (
        (TORCH, "arithmetic='bf16', not 'float32'"),
        (TORCH | {"arithmetic": "bf16"}, "device='cuda', not 'cpu'"),
        (cards | {"arithmetic": "int8-rows"}, "arithmetic='bf16', not 'int8-rows'"),
    ):
        with pytest.raises(BuildError, match=f"holds a job with {name}"):
            run(corpus, model, "out", other)


def test_a_device_changes_nothing_for_engines_of_the_cpu(corpus: Path, model: str) -> None:
    plain: dict[str, Any] = {"backend": "reference"}
    run(corpus, model, "out", plain)
    assert run(corpus, model, "out", plain | {"device": "cpu"}, device="cpu").shards_now == 0
    assert settings_of(corpus.parent / "out")["device"] is None


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "none": ({"backend": "torch"}, {}, "device: expected cuda[:N], xpu[:N], mps or cpu with the engine torch"),
    "misspelt": ({"backend": "torch", "device": "cude"}, {}, "did you mean cuda?"),
    "numbered": ({"backend": "torch", "device": "cuda:1"}, {}, "expected cuda; RunOptions.device numbers the cards"),
    "another engine's": ({"backend": "openvino", "device": "cuda"}, {}, "the openvino engine runs on the cpu"),
    "another engine's, run": ({"backend": "reference"}, {"device": "cuda:0"}, "the reference engine runs on the cpu"),
    "another kind": ({"backend": "torch", "device": "cuda"}, {"device": "cpu"}, "device='cpu': the job's is cuda"),
    "twice": ({"backend": "torch", "device": "cuda"}, {"device": "cuda:0,cuda:0"}, "cuda:0 is named twice"),
    "mixed": ({"backend": "torch", "device": "cuda"}, {"device": "cuda:0,cpu"}, "expected devices of one kind"),
    "more workers": (TORCH, {"device": "cpu,cpu", "workers": 3}, "workers=3: expected one for each device"),
    "workers of one card": (
        {"backend": "torch", "device": "cuda"},
        {"device": "cuda:0", "workers": 2},
        "workers=2: expected one for each device, found device='cuda:0'",
    ),
    "a number on Ray": (
        {"backend": "torch", "device": "cuda"},
        {"device": "cuda:0", "runner": bulk.Runner.RAY},
        "device='cuda:0': expected cuda and workers; Ray assigns the cards",
    ),
    "torch's arithmetic": (TORCH | {"arithmetic": "int8-groups"}, {}, "expected one of float32, bf16, int8-rows"),
    "no trial": (TORCH | {"arithmetic": "auto"}, {}, "expected the name of one arithmetic"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_devices(corpus: Path, model: str, wrong: str) -> None:
    what, how, said = WRONG[wrong]
    with pytest.raises(UsageError) as caught:
        run(corpus, model, "out", what, **how)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (corpus.parent / "out").exists()


COMMANDS = {
    ("--backend", "torch"): (2, "device: expected cuda[:N], xpu[:N], mps or cpu with the engine torch"),
    ("--backend", "torch", "--device", "cuda:0,"): (2, "device='cuda:0,': expected cuda[:N]"),
    ("--backend", "torch", "--device", "cuda:0,cpu"): (2, "expected devices of one kind"),
    ("--backend", "llamacpp", "--device", "cuda"): (2, "the llamacpp engine runs on the cpu"),
    ("--backend", "torch", "--device", "cuda:9"): (1, "docs/gpu.md says what to install"),
    ("--backend", "torch", "--device", "cuda:0,cuda:1"): (1, "docs/gpu.md says what to install"),
}


@pytest.mark.parametrize("options", COMMANDS)
def test_wrong_devices_by_command(corpus: Path, model: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    code, said = COMMANDS[options]
    done = nestling("bulk", corpus, "--model", model, "--out", tmp_path / "out", *options)
    assert (done.code, done.raw, done.err.count("\n")) == (code, b"", 1), done
    assert said in done.err
    assert not list((tmp_path / "out").glob("shards/*"))


def test_search_takes_the_jobs_device_or_another(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus, model, "out", TORCH)
    out = corpus.parent / "out"
    assert len(bulk.search(out, "a", top=3).hits) == 3
    done = nestling("search", out, "a", "--device", "cuda:3")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "device='cuda:3': " in done.err
    done = nestling("search", out, "a", "--device", "cuda:0,cuda:1")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "several devices are for" in done.err


@pytest.mark.filterwarnings("ignore:`:DeprecationWarning")  # Ray's own, of its settings; elsewhere it is not imported
def test_on_ray_a_worker_has_a_card(corpus: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's fake resources: it believes in two cards, hands each worker one, and torch does not find it."""
    ray = pytest.importorskip("ray")
    from nestling.bulk import ray as runner

    start, wanted = ray.init, list[Any]()
    cards: dict[str, Any] = {"backend": "torch", "device": "cuda"}
    options = {"device": "cuda", "runner": bulk.Runner.RAY}
    with pytest.raises(UsageError, match="workers: 2 GPUs needed, the cluster has 0"):
        run(corpus, model, "out", cards, workers=2, **options)
    monkeypatch.setattr(ray, "init", lambda *given, **more: start(*given, **more, num_gpus=2))
    data = ray.data.Dataset.map_batches

    def spied(*given: Any, **more: Any) -> Any:
        wanted.append((more["num_gpus"], more["num_cpus"], more["compute"].min_size))
        return data(*given, **more)

    monkeypatch.setattr(ray.data.Dataset, "map_batches", spied)
    with pytest.raises(EngineError, match=r"device='cuda': .*docs/gpu\.md says what to install"):
        run(corpus, model, "out", cards, workers=2, **options)
    assert wanted == [(1, 1, 2)]
    assert runner._RESOURCES.keys() == {"CPU", "GPU"}
