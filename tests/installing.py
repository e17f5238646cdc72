"""Environments as a stranger sets them up: the supported Pythons that are here, with nothing of ours around them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
BARE = {"HOME", "LANG", "TMPDIR"}
"""What an environment of its own keeps of ours, beside how pip is set up: no PYTHONPATH, no caches."""


def pythons() -> dict[str, str]:
    """Minor version -> an interpreter of it: on the path, of pyenv, or the one that runs the tests."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {ours: os.path.realpath(sys.executable)}
    for version in SUPPORTED:
        installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
        path = next(iter(map(str, installed)), None) or shutil.which(f"python{version}")
        if path and version not in found and subprocess.run([path, "-V"], capture_output=True).returncode == 0:
            found[version] = path
    return found


PYTHONS = pythons()


def clean(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in BARE or name.startswith("PIP_")}
    return {**kept, "PATH": "/usr/bin:/bin", **more}


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=clean(**more), capture_output=True, text=True, timeout=280)


def copied(source: Path, place: Path) -> None:
    """Copy a folder of the sources, without what an earlier build or run has left in it."""
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
