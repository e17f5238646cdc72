"""The two distributions as a stranger gets them: built, and installed into an empty environment.

Each Python here that the package supports gets an environment of its own, with the exact versions of constraints.txt.
"""

import re
import shutil
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from tests.installing import PYTHONS, ROOT, copied, run

MEGABYTE = 1_000_000


def sources(folder: Path) -> Path:
    """A copy of what a build may see: nothing is built inside the checkout."""
    for name in ("src", "data"):
        copied(ROOT / name, folder / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`nestling` and `nestling_data` -> their wheels, as `make wheels` builds them."""
    folder = sources(tmp_path_factory.mktemp("sources"))
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", ".", "./data", cwd=folder)
    assert done.returncode == 0, done.stderr
    return {path.name.partition("-")[0]: path for path in (folder / "dist").glob("*.whl")}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        [name] = [one for one in opened.namelist() if one.endswith(".dist-info/METADATA")]
        return message_from_bytes(opened.read(name))


def test_the_code_is_small_and_under_one_licence(wheels: dict[str, Path]) -> None:
    wheel = wheels["nestling"]
    assert wheel.stat().st_size < MEGABYTE
    found = metadata(wheel)
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".safetensors", ".jsonl", ".txt")) and "dist-info" not in name]
    assert {"nestling/py.typed", "nestling/evaluation/report.css"} <= set(names)


def test_the_data_names_the_licence_of_each_part_and_carries_its_text(wheels: dict[str, Path]) -> None:
    wheel = wheels["nestling_data"]
    found = metadata(wheel)
    named = set(re.findall(r"[A-Za-z][\w.-]+", found["License-Expression"])) - {"AND", "OR"}
    page = (ROOT / "data" / "README.md").read_text("utf-8")
    assert named == set(re.findall(r"`([A-Za-z][\w.-]+)`", page.partition("## Licences")[2]))
    names = zipfile.ZipFile(wheel).namelist()
    for file in found.get_all("License-File") or []:
        assert any(name.endswith(f".dist-info/licenses/{file}") for name in names)
    folders = {name.split("/")[1] for name in names if name.startswith("nestling_data/") and name.count("/") > 1}
    assert all(f"`{folder}/" in page for folder in folders)


def test_every_licence_text_is_cited_and_every_cited_one_is_there() -> None:
    sets = ROOT / "data" / "src" / "nestling_data" / "sets"
    cited = {
        name for page in sets.glob("*/LICENCE.md") for name in re.findall(r"licences/([\w.-]+)`", page.read_text())
    }
    calibration = (sets.parent / "calibration" / "README.md").read_text("utf-8")
    theirs = {"BSD-2-Clause.txt", "BSD-4-Clause.txt", "CC0-1.0.txt", "GFDL-1.2.txt", "WordNet-3.0.txt"}
    for word in ("two, three or four clauses", "CC0", "GFDL-1.2+", "WordNet 3.0"):
        assert word in calibration
    assert cited | theirs == {path.name for path in (sets / "licences").iterdir()}


def installed(folder: Path, python: str, *packages: str | Path) -> Path:
    """An environment with the packages; the folder of its commands."""
    made = run(python, "-m", "venv", folder / "env", cwd=folder)
    assert made.returncode == 0, made.stderr
    pip = (folder / "env/bin/python", "-m", "pip", "install", "--constraint", ROOT / "constraints.txt")
    done = run(*pip, *packages, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "env" / "bin"


@pytest.mark.parametrize("version", sorted(PYTHONS))
def test_both_wheels_in_an_empty_environment_embed_a_text(
    version: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    commands = installed(tmp_path, PYTHONS[version], wheels["nestling"])
    cache = {"NESTLING_CACHE": str(tmp_path / "cache")}
    without = run(commands / "nestling", "embed", "hello", cwd=tmp_path, **cache)
    assert without.returncode == 2
    [line] = without.stderr.splitlines()
    assert "pip install 'nestling[data]'" in line
    served = run(commands / "nestling", "serve", "--port", "0", cwd=tmp_path, **cache)
    assert served.returncode == 2
    assert "pip install 'nestling[serve]'" in served.stderr.splitlines()[0]
    added = run(commands / "python", "-m", "pip", "install", "--no-deps", wheels["nestling_data"], cwd=tmp_path)
    assert added.returncode == 0, added.stderr
    done = run(commands / "nestling", "embed", "hello", cwd=tmp_path, **cache)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 256


def test_the_classifiers_are_the_pythons_that_were_tried() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = {one.rpartition(" ")[2] for one in classifiers if re.search(r":: 3\.\d+$", one)}
    assert set(PYTHONS) <= named | {"3.14"}
