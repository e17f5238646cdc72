"""The origin of a result: code version, start and machine, without host names."""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from nestling._util.cpu import usable_memory, usable_threads
from nestling._util.version import __version__

_PACKAGES = ("numpy", "openvino", "tokenizers", "xllamacpp")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, without host names."""

    system: str
    processor: str
    processors: int
    memory_bytes: int
    python: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Origin:
    """The code, start (UTC) and machine; `commit` is None outside a git checkout and ends in `-dirty` with changes."""

    version: str
    commit: str | None
    started: str
    machine: Machine


def origin() -> Origin:
    """The origin of a measurement that starts now."""
    return Origin(__version__, _commit(), datetime.now(UTC).isoformat(timespec="seconds"), _machine())


@cache
def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    folder = str(Path(__file__).parent)

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", folder, *words], capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    head = ask("rev-parse", "HEAD")
    return head and head + ("-dirty" if ask("status", "--porcelain", "--untracked-files=no") else "")


@cache
def _machine() -> Machine:
    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        processors=usable_threads(),
        memory_bytes=usable_memory(),
        python=platform.python_version(),
        packages=versions,
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
