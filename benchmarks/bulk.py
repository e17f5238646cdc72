"""Bulk jobs measured: speed compared with the engine's, memory, Ray, planning, and kills with SIGKILL.

    python -m benchmarks.bulk speed [ROUNDS]   20,000 documents of mixed lengths: the engine alone, then the job
    python -m benchmarks.bulk memory           resident memory after 2,000 to 200,000 rows of one job of mixed lengths
    python -m benchmarks.bulk ray              two workers of one thread on Ray against one of two threads here
    python -m benchmarks.bulk large [SECONDS]  a source of ten million rows, read for a while
    python -m benchmarks.bulk planning         100,000 shards: planned, and their manifest read
    python -m benchmarks.bulk kills TARGET N   N times: driver, worker, ray-driver, ray-worker or ray-cluster
    python -m benchmarks.bulk same             the bytes of 1, 2 and 4 workers, here and on Ray

Each part writes its own entry of `benchmarks/results/bulk.json`. Model: the starter, retrieval, Q8_0.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tests.corpora import contents
from tests.fault.test_bulk_faults import TARGETS, children, kill, named

from benchmarks import measuring
from nestling import Embedder, bulk
from nestling.bulk import manifest, plan, sources
from nestling.bulk.manifest import Finished, Job, Log, Model
from nestling.bulk.settings import SHARD_ROWS
from nestling.evaluation.texts import TextSource

MODEL = "starter-retrieval:Q8_0"
COMMAND = (sys.executable, "-c", "import sys; from nestling.cli import main; main()", "bulk")
DOCUMENTS, LENGTHS = 20_000, (8, 160)
MARKS, DISTINCT, SHORT = (2_000, 20_000, 100_000, 200_000), 20_000, (4, 64)
SIZES, SAMPLE_S = ("VmHWM", "VmRSS", "RssAnon", "RssFile"), 0.05
LARGE_ROWS, LARGE_GROUP = 10_000_000, 1_000_000
SHARDS = 100_000
KILL_ROWS, KILL_SHARD, KILL_S = 600, 20, 2400


def main(part: str, *arguments: str) -> None:
    """Measure one part and put it into the result file."""
    with tempfile.TemporaryDirectory() as folder:
        found = PARTS[part](Path(folder), *arguments)
    path = measuring.RESULTS / "bulk.json"
    old = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    name = "-".join([part, *arguments[:1]]) if part == "kills" else part
    entry = {"commit": measuring.commit(), "load_before": round(os.getloadavg()[0], 2), **found}
    measuring.write("bulk", {"model": MODEL, "parts": old | {name: entry}})
    print(json.dumps({name: entry}, indent=1))


def texts(count: int, low: int, high: int) -> list[str]:
    """Texts of log-uniform numbers of tokens; the same every time."""
    source = TextSource(Embedder.load(MODEL).tokenizer)
    draws = np.exp(np.random.default_rng(1).uniform(np.log(low), np.log(high), count))
    return [source.text(int(length)) for length in draws]


def corpus(path: Path, rows: list[str]) -> Path:
    """A Parquet file of texts with ids."""
    pq.write_table(pa.table({"id": np.arange(len(rows)), "text": rows}), path)
    return path


def speed(folder: Path, rounds: str = "2", count: str = str(DOCUMENTS)) -> dict[str, Any]:
    """Tokens per second of one call of the engine with all texts, and of the job with its start and from then on."""
    rows = texts(int(count), *LENGTHS)
    source = corpus(folder / "c.parquet", rows)
    embedder = Embedder.load(MODEL)
    embedder.encode(rows[:200], prompt_name="passage")
    seconds: dict[str, list[float]] = {"engine with tokenizer": [], "job": []}
    tokens, steady = 0, list[float]()
    for turn in range(int(rounds)):
        began = time.perf_counter()
        embedder.encode(rows, prompt_name="passage")
        seconds["engine with tokenizer"].append(time.perf_counter() - began)
        began = time.perf_counter()
        marks: list[tuple[float, int]] = []
        tokens = bulk.run([str(source)], folder / f"out{turn}", bulk.JobSpec(MODEL), progress=_Clock(marks).told).tokens
        seconds["job"].append(time.perf_counter() - began)
        steady.append(_steady(marks))
    rates = {name: tokens / min(row) for name, row in seconds.items()}
    rates["job, less its start"] = max(steady)
    shares = {name: rates[name] / rates["engine with tokenizer"] for name in ("job", "job, less its start")}
    return {
        "documents": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": rates,
        "over_engine": shares,
    }


def memory(folder: Path) -> dict[str, Any]:
    """Memory of one job when so many rows are done: resident, its parts, and its peak until then."""
    some = texts(DISTINCT, *SHORT)
    source = corpus(folder / "c.parquet", [f"{n} {some[n % DISTINCT]}" for n in range(MARKS[-1])])
    out, found = folder / "out", dict[int, dict[str, int]]()
    command = [*COMMAND, str(source), "--out", str(out), "--model", MODEL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for sizes in _watched(process):
            log = out / manifest.LOG
            done = log.read_bytes().count(b"\n") * SHARD_ROWS if log.exists() else 0
            found |= {mark: sizes for mark in MARKS if mark <= done and mark not in found}
    assert process.returncode == 0, "the job failed"
    found.setdefault(MARKS[-1], sizes)  # the last look, if the job ended before another
    peaks = [one["VmHWM"] for one in found.values()]
    growth = {f"{mark} to {MARKS[-1]}": peaks[-1] / peak for mark, peak in zip(MARKS, peaks, strict=True)}
    return {"tokens_without_prefix": SHORT, "bytes_when_rows_done": found, "growth_of_peak": growth}


def _watched(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, int]]:
    """A child's memory in bytes as /proc has it, again and again until it ends."""
    while process.poll() is None:
        lines = [line.split() for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()]
        found = {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0][:-1] in SIZES}
        if len(found) == len(SIZES):  # a process that is ending has none
            yield found
        time.sleep(SAMPLE_S)


def _steady(marks: list[tuple[float, int]]) -> float:
    """Tokens per second from the first mark with tokens to the last."""
    real = [mark for mark in marks if mark[1]]
    return (real[-1][1] - real[0][1]) / (real[-1][0] - real[0][0])


class _Clock:
    """Notes when how many tokens were done."""

    def __init__(self, marks: list[tuple[float, int]]) -> None:
        self._marks = marks

    def told(self, status: bulk.Status) -> None:
        self._marks.append((time.perf_counter(), status.tokens))


def on_ray(folder: Path) -> dict[str, Any]:
    """Tokens per second between the first and the last finished shard, and of the whole run with its start."""
    source = corpus(folder / "c.parquet", texts(DOCUMENTS, *LENGTHS))
    ways = {
        "local, two threads": bulk.RunOptions(threads=2),
        "local, two workers of one thread": bulk.RunOptions(workers=2, threads=1),
        "ray, two workers of one thread": bulk.RunOptions(runner=bulk.Runner.RAY, workers=2, threads=1),
    }
    found = {}
    for name, how in ways.items():
        marks: list[tuple[float, int]] = []
        what = bulk.JobSpec(MODEL, shard_rows=250)
        outcome = bulk.run([str(source)], folder / name.replace(" ", "-"), what, how, progress=_Clock(marks).told)
        found[name] = {"tokens_per_s": _steady(marks), "with_start_tokens_per_s": outcome.tokens / outcome.seconds}
    rates = [one["tokens_per_s"] for one in found.values()]
    return {
        "ways": found,
        "ray_over_local_two_threads": rates[2] / rates[0],
        "ray_over_local_two_workers": rates[2] / rates[1],
    }


def large(folder: Path, seconds: str = "60") -> dict[str, Any]:
    """Peak memory over a file of ten million rows, interrupted after a while."""
    source = folder / "large.parquet"
    with pq.ParquetWriter(source, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, LARGE_ROWS, LARGE_GROUP):
            ids = pa.array(np.arange(start, start + LARGE_GROUP))
            rows = pc.binary_join_element_wise("document", ids.cast(pa.string()), "of ten million", " ")
            writer.write_table(pa.table({"id": ids, "text": rows}), row_group_size=LARGE_GROUP)
    out, began, peak, planned = folder / "out", time.perf_counter(), 0, 0.0
    command = [*COMMAND, str(source), "--out", str(out), "--model", MODEL, "--dimensions", "32"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        for sizes in _watched(process):
            peak, so_far = sizes["VmHWM"], time.perf_counter() - began
            planned = planned or (so_far if (out / manifest.JOB).exists() else 0.0)
            if planned and so_far > planned + float(seconds):
                break
        process.terminate()
    job = Job.read(out)
    rows_done = Log(job, append=False).rows
    return {
        "rows": LARGE_ROWS,
        "row_group": LARGE_GROUP,
        "planned_s": planned,
        "rows_done": rows_done,
        "peak_resident_bytes": peak,
    }


def planning(folder: Path) -> dict[str, Any]:
    """Seconds to plan 10,000 and 100,000 shards of ten rows with their ids, and to read their manifest."""
    found = {}
    for count in (SHARDS // 10, SHARDS):
        source = corpus(folder / f"{count}.parquet", [f"text {n}" for n in range(count * 10)])
        out = folder / str(count)
        (out / manifest.SHARDS).mkdir(parents=True)
        what, began = bulk.JobSpec(MODEL, shard_rows=10), time.perf_counter()
        made = plan.make(sources.expand([str(source)]), what, folder=out)
        job = Job.create(out, what, Model(MODEL, "0" * 64, 128), made)
        shards = job.plan.shards()
        planned = time.perf_counter() - began
        (out / manifest.LOG).write_bytes(
            b"".join(manifest.line(Finished(s.name, 10, 0, 60, 9000, "0" * 64)) for s in shards)
        )
        began = time.perf_counter()
        log = Log(Job.read(out), append=False)
        read = time.perf_counter() - began
        assert len(log.finished) == count
        found[str(count)] = {"planned_s": planned, "manifest_read_s": read}
    return {"shards": found, "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _killed(folder: Path) -> tuple[list[str], dict[str, bytes], float]:
    """A job, what an undisturbed run leaves, and how long that took."""
    source = corpus(folder / "c.parquet", texts(KILL_ROWS, 8, 40))
    command = [*COMMAND, str(source), "--model", MODEL, "--shard-rows", str(KILL_SHARD)]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--out", str(folder / "whole")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return command, contents(folder / "whole"), time.perf_counter() - began


def kills(folder: Path, target: str, times: str = "30") -> dict[str, Any]:
    """Kill at a random moment, run again, compare every file."""
    command, whole, _ = _killed(folder)
    ray = target.startswith("ray-")
    options = ["--engine", "ray", "--workers", "2", "--threads", "1"] if ray else ["--workers", "2"]
    draw, states, hit, began = random.Random(3), list[int](), 0, time.perf_counter()  # noqa: S311 - a seed
    for number in range(int(times)):
        if time.perf_counter() - began > KILL_S:
            break
        out = folder / f"{target}-{number}"
        wanted = draw.randrange(KILL_ROWS // KILL_SHARD)
        process = subprocess.Popen(
            [*command, "--out", str(out), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while len(list((out / "shards").glob("*.parquet"))) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.2)
        while not (victims := _victims(target, process.pid)) and process.poll() is None:
            time.sleep(0.005)  # it has not begun yet
        hit += process.poll() is None
        below = children(process.pid)
        kill(victims)
        process.wait()
        kill(below)
        states.append(len(list((out / "shards").glob("*.parquet"))))
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert contents(out) == whole, f"{target}, kill {number}: the rerun differs"
    return {
        "kills": len(states),
        "while_at_work": hit,
        "shards_there_before_the_rerun": states,
        "shards": KILL_ROWS // KILL_SHARD,
        "equal": len(states),
    }


def _victims(target: str, driver: int) -> list[int]:
    if target.startswith("ray-"):
        return TARGETS[target.removeprefix("ray-")](driver)
    return [driver] if target == "driver" else named(children(driver), "spawn_main")[:1]


def same(folder: Path) -> dict[str, Any]:
    """Whether 1, 2 and 4 workers leave the same files."""
    command, whole, _ = _killed(folder)
    found = {}
    here = [["--workers", count] for count in ("2", "4")]
    on = [["--engine", "ray", "--workers", count, "--threads", "1"] for count in ("1", "2", "4")]
    ways = [*here, *on]
    for way in ways:
        out = folder / "-".join(way)
        subprocess.run(
            [*command, "--out", str(out), *way], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        found[" ".join(way)] = contents(out) == whole
    return {"against": "--workers 1", "same_bytes": found}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "speed": speed, "memory": memory, "ray": on_ray, "large": large, "planning": planning, "kills": kills, "same": same,
}  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
