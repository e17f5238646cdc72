"""Bulk jobs that are killed, interrupted, out of space: the rerun ends with the bytes of an undisturbed run.

`benchmarks/bulk.py` does the kills thirty times over; here it is a few.
"""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.corpora import contents, parquet, rejects, rows
from tests.full_disk import largest_file
from tests.picture_files import png
from tests.pictures import noise

from nestling import bulk
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task

COUNT, SHARD = 300, 20
COMMAND = "import sys; from nestling.cli import main; main()"
INTERRUPTED = 130


@pytest.fixture(scope="module")
def command(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job of fifteen shards in the slow engine: some seconds."""
    source = parquet(tmp_path_factory.mktemp("source") / "c.parquet", rows(COUNT))
    options = ["--model", tiny_models["F32"], "--backend", "reference", "--keep", "n", "--shard-rows", SHARD]
    return [sys.executable, "-c", COMMAND, "bulk", str(source), *map(str, options)]


@pytest.fixture(scope="module")
def undisturbed(command: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(command, out)
    return contents(out)


def run(command: Sequence[str], out: Path, *options: str) -> None:
    done = subprocess.run([*command, "--out", str(out), *options], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def shards(out: Path) -> int:
    return len(list((out / "shards").glob("*.parquet")))


def start(command: Sequence[str], out: Path, *options: str, wanted: int) -> "subprocess.Popen[str]":
    """Run until so many shards are there."""
    whole = [*command, "--out", str(out), *options]
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while shards(out) < wanted and process.poll() is None:
        time.sleep(0.01)
    return process


def children(of: int) -> list[int]:
    """Every process below one, by /proc."""
    found, parents = [of], {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for one in found:
        found += [pid for pid, parent in parents.items() if parent == one]
    return found[1:]


def named(pids: Sequence[int], word: str) -> list[int]:
    """Those whose command line has a word."""
    return [pid for pid in pids if word in _line(pid)]


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_driver_killed(command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path, workers: str) -> None:
    """Three times in one job, at moments of their own; no worker outlives it."""
    draw = random.Random(5)
    for wanted in (0, 3, 8):
        with start(command, tmp_path / "out", "--workers", workers, wanted=wanted) as process:
            time.sleep(draw.random() * 0.3)
            below = children(process.pid)
            process.kill()
            process.wait()
            ended = time.monotonic() + 20
            while any(Path(f"/proc/{pid}").exists() and _line(pid) for pid in below):
                assert time.monotonic() < ended, "a worker lives on"
                time.sleep(0.02)
    run(command, tmp_path / "out", "--workers", workers)
    assert contents(tmp_path / "out") == undisturbed


def test_a_worker_killed(command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    with start(command, tmp_path / "out", "--workers", "2", wanted=2) as process:
        kill(named(children(process.pid), "spawn_main")[:1])
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "nestling: a worker process died; run the command again to resume\n")
    run(command, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed


def test_a_worker_killed_while_the_other_hears_nothing(command: Sequence[str], tmp_path: Path) -> None:
    """As one does that starts while the pool breaks: a stopped process does not hear SIGTERM either."""
    with start(command, tmp_path / "out", "--workers", "2", wanted=2) as process:
        victim, other = named(children(process.pid), "spawn_main")
        os.kill(other, signal.SIGSTOP)
        kill([victim])
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "nestling: a worker process died; run the command again to resume\n")
    assert not _line(other)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupted(command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path, workers: str) -> None:
    with start(command, tmp_path / "out", "--workers", workers, wanted=2) as process:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (INTERRUPTED, "")
    assert err == "nestling: interrupted; run the command again to resume\n"
    assert shards(tmp_path / "out") < COUNT // SHARD
    run(command, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed


@pytest.fixture(scope="module")
def image_command(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job over sixty image files, some of them broken, in fifteen shards."""
    folder, pictures = tmp_path_factory.mktemp("family"), tmp_path_factory.mktemp("pictures")
    Pipeline(Checkpoint.open(vision_checkpoint), folder, "tiny", 1).build([Task.RETRIEVAL], ["F32"])
    for number in range(60):
        data = png(noise(56 + 28 * (number % 3), 84 + number))
        (pictures / f"{number}.png").write_bytes(data[:300] if number % 10 == 3 else data)
    model = model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32")
    options = ["--model", model, "--backend", "reference", "--shard-rows", "4"]
    return [sys.executable, "-c", COMMAND, "bulk", str(pictures), *map(str, options)]


@pytest.fixture(scope="module")
def undisturbed_images(image_command: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(image_command, out)
    assert len(rejects(out)) == 6
    return contents(out)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_images_killed(
    image_command: Sequence[str], undisturbed_images: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    for wanted in (0, 3, 8):
        with start(image_command, tmp_path / "out", "--workers", workers, wanted=wanted) as process:
            os.killpg(process.pid, signal.SIGKILL)
    run(image_command, tmp_path / "out", "--workers", workers)
    assert contents(tmp_path / "out") == undisturbed_images


def test_ray_makes_the_same_bytes_of_images(
    image_command: Sequence[str], undisturbed_images: dict[str, bytes], tmp_path: Path
) -> None:
    run(image_command, tmp_path / "out", "--engine", "ray", "--workers", "2", "--threads", "1")
    assert contents(tmp_path / "out") == undisturbed_images


def test_four_workers_make_the_same_bytes(
    command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    run(command, tmp_path / "out", "--workers", "4")
    assert contents(tmp_path / "out") == undisturbed


def test_no_space_left(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """A shard that does not fit leaves nothing under its name; with room the job goes on."""
    source = parquet(tmp_path / "c.parquet", rows(40))
    what = bulk.JobSpec(str(tiny_models["F32"]), backend="reference", shard_rows=20)
    with largest_file(tmp_path, 10_000), pytest.raises(OSError, match="File too large"):
        bulk.run([str(source)], tmp_path / "out", what)
    assert shards(tmp_path / "out") == 0
    assert bulk.run([str(source)], tmp_path / "out", what).rows == 40


# Ray.

Target = Callable[[int], list[int]]
TARGETS: dict[str, Target] = {
    "worker": lambda driver: named(children(driver), "ray::MapWorker")[:1],
    "driver": lambda driver: [driver],
    "cluster": lambda driver: [*children(driver), driver],
}


def test_ray_makes_the_same_bytes(command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run(command, tmp_path / "out", "--engine", "ray", "--workers", "2", "--threads", "1")
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("target", TARGETS)
def test_ray_killed(command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path, target: str) -> None:
    """A killed actor is Ray's to replace; a killed driver or cluster is the rerun's to make good."""
    ray = ("--engine", "ray", "--workers", "2", "--threads", "1")
    with start(command, tmp_path / "out", *ray, wanted=2) as process:
        below = children(process.pid)
        victims = TARGETS[target](process.pid)
        assert victims, "nobody to kill"
        kill(victims)
        _, err = process.communicate(timeout=200)
        if target == "worker":
            assert process.returncode == 0, err
        kill(below)  # of a killed driver's cluster nothing may be left for the next test
    run(command, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed


CLUSTER = """
import ray
found = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(found.address_info["gcs_address"], flush=True)
input()
"""


def test_a_ray_that_is_there(
    command: Sequence[str], undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster of another process is used, and not asked for more than it has. Its token is made up here."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        assert cluster.stdout is not None
        lines = iter(cluster.stdout.readline, "")
        address = next(line.strip() for line in lines if line[0].isdigit() and ":" in line and " " not in line.strip())
        options = ["--engine", "ray", "--ray-address", address, "--threads", "1"]
        run(command, tmp_path / "out", *options, "--workers", "2")
        whole = [*command, "--out", str(tmp_path / "more"), *options, "--workers", "3"]
        more = subprocess.run(whole, capture_output=True, text=True, timeout=100)
        cluster.communicate("\n", timeout=60)
    assert contents(tmp_path / "out") == undisturbed
    assert (more.returncode, more.stderr.splitlines()[-1]) == (
        2, "nestling: workers: 3 processors needed, the cluster has 2"
    )  # fmt: skip


def test_ray_says_what_is_wrong(command: Sequence[str], tmp_path: Path) -> None:
    """An error of a worker comes back as itself."""
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n' * 5)
    whole = [*command[:4], str(tmp_path / "c.jsonl"), *command[5:], "--out", str(tmp_path / "out"), "--engine", "ray"]
    whole = [one for one in whole if one not in ("--keep", "n")]
    done = subprocess.run([*whole, "--max-rejects", "2"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 1
    assert "nestling: 5 rows are rejected, max_rejects=2" in done.stderr
