"""Fetches the battery's packages and the package indexes, through apt-get and pip. Nothing of the system is changed.

Writes below the battery's folder: `downloads/`, `debian/PACKAGE` (the files that are read), `wheels/`, `index/` (the
index of two suites with descriptions in our languages and DEP-11, in lists of its own) and `fetched.txt`.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from typing import TYPE_CHECKING

from starter_recipe.battery.packages import BEFORE, DEBIAN, PYTHON, SUITE
from starter_recipe.battery.sets import Sources
from starter_recipe.fetch import fetch_python, run

if TYPE_CHECKING:
    from pathlib import Path

_WANTED = re.compile(r"(\.html?|/LC_MESSAGES/.*\.mo|\.dict\.dz|/man/man\d/.*\.gz|\.go)$")
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_CONFIGURATION = """
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/none";
Acquire::GzipIndexes "false";
#clear Acquire::Languages;
Acquire::Languages {{ "en"; "de"; "fr"; "es"; "ja"; "zh_CN"; }};
#clear Acquire::IndexTargets::deb::DEP-11;
Acquire::IndexTargets::deb::DEP-11 {{
  MetaKey "$(COMPONENT)/dep11/Components-$(NATIVE_ARCHITECTURE).yml";
  ShortDescription "Components"; Description "$(RELEASE) DEP-11"; KeepCompressed "true"; KeepCompressedAs "gz";
}};
"""


def fetch(output: Path) -> Sources:
    """Get what is not there yet."""
    sources = Sources(output / "debian", output / "wheels", output / "index" / "lists")
    fetch_index(output / "index")
    packages = fetch_debian(output / "downloads")
    for package in packages:
        unpack(package, sources.debian)
    have = {path.name.lower() for path in sources.wheels.glob("*")} if sources.wheels.exists() else set()
    fetch_python([one for one in PYTHON if not _has(one, have)], sources.wheels)
    names = sorted(path.name for path in [*packages, *sources.wheels.iterdir(), *sources.lists.glob("*_main_*")])
    (output / "fetched.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return sources


def _has(requirement: str, files: set[str]) -> bool:
    """Tell whether a requirement's file is among the downloaded ones."""
    name, version = requirement.split("==")
    return any(re.sub("[._]", "-", file).startswith(re.sub("[._]", "-", f"{name}-{version}-")) for file in files)


def fetch_index(folder: Path) -> None:
    """Get the index of the two suites, from the mirror that apt is set up with."""
    if list((folder / "lists").glob(f"*_{SUITE}_main_dep11_*")):
        return
    folder = folder.resolve()
    for part in ("lists/partial", "cache/archives/partial", "none"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    found = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {BEFORE}"], folder).decode().split()
    entries = [f"deb [signed-by={_KEYS}] {found[0]} {suite} main\n" for suite in (BEFORE, SUITE)]
    (folder / "sources.list").write_text("".join(entries), encoding="utf-8")
    (folder / "apt.conf").write_text(_CONFIGURATION.format(folder=folder), encoding="utf-8")
    run(["apt-get", "-c", str(folder / "apt.conf"), "update"], folder)


def fetch_debian(downloads: Path) -> list[Path]:
    """Download the Debian packages that are not there yet."""
    downloads.mkdir(parents=True, exist_ok=True)
    have = {path.name.split("_")[0] for path in downloads.glob("*.deb")}
    if missing := [name for name in DEBIAN if name not in have]:
        run(["apt-get", "download", *missing], downloads)
    return sorted(path for path in downloads.glob("*.deb") if path.name.split("_")[0] in DEBIAN)


def unpack(package: Path, folder: Path) -> None:
    """Unpack the files of a package that a reader wants; links are left out."""
    target = folder / package.name.split("_")[0]
    if target.exists():
        return
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own command
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and _WANTED.search(member.name):
                    archive.extract(member, target, filter="data")
    target.mkdir(parents=True, exist_ok=True)
