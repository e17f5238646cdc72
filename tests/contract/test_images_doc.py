"""docs/images.md run as a reader would, after the README's four pictures and four sentences: in Python, over HTTP with
openai's client and with curl. The starter stands in for the real model, and a script for pdftoppm where it is missing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.contract.conftest import Served
from tests.contract.snippets import ADDRESS
from tests.picture_files import png, saved
from tests.pictures import bars, page

from nestling.vectors import Floats

ROOT = Path(__file__).parents[2]
README, DOCUMENT = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/images.md"))
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^    (\S.*)$", DOCUMENT, re.MULTILINE)]
ROUNDED = 0.011
"""The matrices are printed with two places, and a server's texts are batched otherwise."""
PDFTOPPM = '#!/bin/sh\nfor last; do :; done\ncp chart.png "$last-1.png"\n'


@dataclass(frozen=True)
class Reader:
    """A reader's folder, and the matrix that the README's example printed there."""

    folder: Path
    matrix: Floats


def matrix_of(text: str) -> Floats:
    numbers = [float(one) for one in re.findall(r"-?\d+\.\d*", text)]
    return np.array(numbers, np.float32).reshape(4, 4)


def python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    for name in ("chart.png", "page-1.png", "page-2.png"):
        (folder / name).write_bytes(png(page(200, 150)))
    (folder / "photo.jpg").write_bytes(saved(bars(90, 120), "JPEG"))
    (folder / "report.pdf").write_bytes(b"%PDF-1.4")
    [example] = [one for one in PYTHON.findall(README) if "encode_image" in one]
    return Reader(folder, matrix_of(python(example, folder)))


def test_pictures_differ_and_their_cosines_are_such(reader: Reader) -> None:
    assert np.abs(reader.matrix).max() <= 1
    assert len({tuple(row) for row in reader.matrix.tolist()}) > 1


def test_the_same_with_the_openai_client(reader: Reader, served: Served) -> None:
    [example] = [one for one in PYTHON.findall(DOCUMENT) if "openai" in one]
    found = matrix_of(python(example.replace(ADDRESS, served.url), reader.folder))
    np.testing.assert_allclose(found, reader.matrix, atol=ROUNDED)


def test_the_same_with_curl(reader: Reader, served: Served) -> None:
    [example] = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)
    command = example.replace(ADDRESS, served.url)
    done = subprocess.run(["sh", "-c", command], cwd=reader.folder, capture_output=True, check=True)
    rows = np.array([one["embedding"] for one in json.loads(done.stdout)["data"]], np.float32)
    np.testing.assert_allclose(rows[4:] @ rows[:4].T, reader.matrix, atol=ROUNDED)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(reader: Reader, tmp_path: Path, command: str) -> None:
    (tmp_path / "nestling").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from nestling.cli import main; main()' \"$@\"\n"
    )
    if not shutil.which("pdftoppm"):
        (tmp_path / "pdftoppm").write_text(PDFTOPPM)
    for script in tmp_path.iterdir():
        script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], cwd=reader.folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr


def test_the_first_example_of_the_page(reader: Reader) -> None:
    [example] = [one for one in PYTHON.findall(DOCUMENT) if "encode_image" in one]
    assert "[[" in python(example.replace("jina-v4-retrieval:Q4_K_M", "starter-retrieval:Q8_0"), reader.folder)
