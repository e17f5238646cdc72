"""Step 1 of the eyes: download fonts, pictures, names and manuals from the Debian and npm registries and unpack them.

Reads  nothing but the registries, through apt-get and npm. Debian's package lists must be up to date.
Writes WORK/downloads, WORK/debian/PACKAGE, WORK/npm/PACKAGE and WORK/fetched.txt (the files got).
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path

from starter_recipe.fetch import run


def listed(names: str) -> list[str]:
    """Names separated by blanks."""
    return names.split()


FONTS = listed(
    "fonts-dejavu-core fonts-dejavu-extra fonts-liberation2 fonts-freefont-ttf fonts-noto-core fonts-noto-mono "
    "fonts-lato fonts-roboto-unhinted fonts-open-sans fonts-crosextra-carlito fonts-crosextra-caladea "
    "fonts-linuxlibertine fonts-cantarell fonts-hack fonts-inter fonts-ebgaramond fonts-junicode "
    "fonts-texgyre fonts-croscore fonts-noto-cjk fonts-wqy-microhei fonts-wqy-zenhei fonts-ipafont-gothic "
    "fonts-ipafont-mincho"
)
MANUALS = listed("borgbackup-doc python-django-doc python-scrapy-doc python-sqlalchemy-doc nut-doc")
"""Their questions and answers are the pages of `pages-en`; nothing trains on them."""
PICTURES = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "circle-flags": "1.2.11",
    "flag": "1.2.12",
    "mdi": "1.2.3",
    "tabler": "1.2.41",
    "fluent-emoji-flat": "1.2.6",
}
"""Versions of `@iconify-json/NAME`. The last is the font of `emoji-names`; nothing trains on it."""


def fetch_debian(work: Path) -> None:
    """Download and unpack the Debian packages that are not there yet."""
    downloads = work / "downloads" / "debian"
    downloads.mkdir(parents=True, exist_ok=True)
    have = {path.name.split("_")[0] for path in downloads.glob("*.deb")}
    missing = [name for name in (*FONTS, *MANUALS, "unicode-cldr-core") if name not in have]
    if missing:
        run(["apt-get", "download", *missing], downloads)
    for package in sorted(downloads.glob("*.deb")):
        target = work / "debian" / package.name.split("_")[0]
        if not target.exists():
            run(["dpkg-deb", "-x", str(package.resolve()), str(target.resolve())], downloads)


def fetch_pictures(work: Path) -> None:
    """Download and unpack the picture sets that are not there yet."""
    downloads = work / "downloads" / "npm"
    downloads.mkdir(parents=True, exist_ok=True)
    for name, version in PICTURES.items():
        path = downloads / f"iconify-json-{name}-{version}.tgz"
        if not path.exists():
            run(["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"], downloads)
        with tarfile.open(path) as archive:
            archive.extractall(work / "npm" / name, filter="data")


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work-eyes"))
    work: Path = parser.parse_args().work
    fetch_debian(work)
    fetch_pictures(work)
    names = sorted(path.name for path in (work / "downloads").glob("*/*"))
    (work / "fetched.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(names)} packages in {work}")


if __name__ == "__main__":
    main()
