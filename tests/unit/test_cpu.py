"""Threads and memory as containers allow them, from trees that look like the system's.

Doors: affinity, quota and memory of cgroup 2 and 1, in the process's own group, in one above it, or at the mount's root
where a container hides the path. Indices: nothing in the package asks the system for either but `_util/cpu.py`.
"""

import os
import re
from pathlib import Path

import pytest

from nestling._util.cpu import usable_memory, usable_threads

GIB = 1 << 30
SRC = Path(__file__).parents[2] / "src" / "nestling"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 64 * GIB // 4096, "SC_PAGE_SIZE": 4096}.__getitem__)


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1_CPU = "cpu,cpuacct/docker/x"
V1 = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n"


@pytest.mark.parametrize(
    ("groups", "files", "threads"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../../hidden\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/not/mounted/here\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "1600000 100000\n"}, 8),
        ("0::/a\n", {"a/cpu.max": "odd\n"}, 8),
        (V1, {f"{V1_CPU}/cpu.cfs_quota_us": "200000", f"{V1_CPU}/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/docker/x/cpu.cfs_quota_us": "-1", "cpu/docker/x/cpu.cfs_period_us": "100000"}, 8),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_threads(tmp_path: Path, groups: str, files: dict[str, str], threads: int) -> None:
    assert usable_threads(tree(tmp_path, groups, files)) == threads


@pytest.mark.parametrize(
    ("groups", "files", "gib"),
    [
        ("0::/a/b\n", {"a/b/memory.max": f"{4 * GIB}\n"}, 4),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{3 * GIB}\n"}, 3),
        ("0::/a/b\n", {"a/b/memory.max": "max\n"}, 64),
        (V1, {"memory/docker/x/memory.limit_in_bytes": f"{2 * GIB}\n"}, 2),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64),
        ("", {}, 64),
    ],
)
def test_memory(tmp_path: Path, groups: str, files: dict[str, str], gib: int) -> None:
    assert usable_memory(tree(tmp_path, groups, files)) == gib * GIB


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert (usable_threads(tmp_path), usable_memory(tmp_path)) == (8, 64 * GIB)


def test_nothing_else_asks_the_system() -> None:
    asks = re.compile(r"cpu_count|sched_getaffinity|SC_PHYS_PAGES|virtual_memory")
    found = {path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py") if asks.search(path.read_text("utf-8"))}
    assert found == {"_util/cpu.py"}
