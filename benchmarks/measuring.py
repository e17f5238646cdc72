"""What every benchmark here records: the machine, the commit, and a child process's time and memory. Linux only."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """A finished child: wall time, highest resident and highest anonymous memory in bytes, standard output."""

    wall_s: float
    peak_resident_bytes: int
    peak_anonymous_bytes: int
    output: str


def run(*command: str, limit_s: float | None = None) -> Run:
    """Run a command to its end and watch its memory; a command that fails ends the benchmark with its own words.

    After `limit_s` it is ended, and what it cost until then is the answer.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        peaks = {"VmHWM": 0, "RssAnon": 0}
        watcher = threading.Thread(target=_watch, args=(child, peaks))
        watcher.start()
        stopper = threading.Timer(limit_s or 0, child.terminate)
        if limit_s:
            stopper.start()
        output = child.stdout.read() if child.stdout else ""
        child.wait()
        stopper.cancel()
        watcher.join()
    if child.returncode and not (limit_s and child.returncode == -signal.SIGTERM):
        sys.exit(f"{' '.join(command)}: exit code {child.returncode}")
    return Run(time.perf_counter() - began, peaks["VmHWM"], peaks["RssAnon"], output)


def _watch(child: "subprocess.Popen[str]", peaks: dict[str, int]) -> None:
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        found = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in lines)
            if name in peaks
        }
        for name, size in found.items():
            peaks[name] = max(peaks[name], size)
        time.sleep(SAMPLE_S)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and versions, as far as they bear on a figure."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    ).split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def slug(kind: str) -> str:
    """A kind of processor in a file's name."""
    return kind.lower().replace(" ", "-")


def commit() -> str:
    """The commit that is measured, with `+` when the tree differs from it; empty in a copy without its history."""
    head, dirty = (
        _git(*arguments) for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "src"))
    )
    return head + ("+" if dirty else "")


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _shown(argument: str) -> str:
    """An argument as a reader can repeat it: a folder of this machine is DIR."""
    return "DIR" if Path(argument).is_absolute() else argument


def renew(name: str, part: dict[str, Any]) -> Path:
    """Write a result of which only `part` was measured now; the rest is kept, and `earlier` tells where it is from."""
    origin = ("command", "commit", "machine")
    old: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    earlier = old.get("earlier") or {key: old[key] for key in origin}
    kept = {key: value for key, value in old.items() if key not in origin}
    return write(name, kept | {"earlier": earlier} | part)


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result with the machine, the commit and the command that made it."""
    path = RESULTS / f"{name}.json"
    command = "python -m benchmarks." + Path(sys.argv[0]).stem + "".join(f" {_shown(one)}" for one in sys.argv[1:])
    whole = {"command": command, "commit": commit(), "machine": machine(), **result}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return path
