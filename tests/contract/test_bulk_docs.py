"""docs/bulk.md and docs/scale.md as a reader would follow them: embed, interrupt, resume, search, hand to others."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.scale import with_tables
from tests.corpora import contents, parquet
from tests.picture_files import png
from tests.pictures import gradient, noise

DOCS = Path(__file__).parents[2] / "docs"
BULK, SCALE = ((DOCS / name).read_text("utf-8") for name in ("bulk.md", "scale.md"))
COMMAND = "import sys; from nestling.cli import main; main()"
COMMANDS = re.findall(r"^    nestling (.*?) *(?:#.*)?$", BULK, re.MULTILINE)
EXAMPLES = dict(re.findall(r"^### (\w+)\n.*?^```python\n(.*?)^```", SCALE, re.MULTILINE | re.DOTALL))
NEEDS_A_SERVER = "pgvector"


def command(line: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, *shlex.split(line)]


def done(arguments: list[str], folder: Path) -> str:
    finished = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, starter_q8: Path) -> Path:
    """Where the example has been followed: the corpus, embedded, interrupted in the middle and resumed."""
    assert starter_q8.exists()
    path = tmp_path_factory.mktemp("reader")
    block = re.search(r"```python\n(.*?)```", BULK, re.DOTALL)
    assert block
    done([sys.executable, "-c", block[1]], path)
    with subprocess.Popen(command(COMMANDS[0]), cwd=path, stderr=subprocess.PIPE, text=True) as process:
        while not list(path.glob("vectors/shards/*.parquet")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "nestling: interrupted; run the command again to resume\n")
    assert 0 < len(list(path.glob("vectors/shards/*.parquet"))) < 15
    assert "1,500 vectors in 15 shards, 0 rows rejected" in done(command(COMMANDS[0]), path)
    return path


def test_the_result_is_searched(folder: Path) -> None:
    out = done(command(COMMANDS[1]), folder)
    assert len(re.findall(r"(perlfaq-en|code-docstring|xling-manpages)/", out)) == 5


def test_the_same_on_ray(folder: Path) -> None:
    assert "1,500 vectors in 15 shards" in done(command(COMMANDS[2]), folder)
    assert contents(folder / "vectors-ray") == contents(folder / "vectors")
    assert done(command(COMMANDS[3]), folder) == done(command(COMMANDS[1]), folder)


def test_images_are_embedded_and_searched(tmp_path: Path, starter_q8: Path) -> None:
    assert starter_q8.exists()
    done(command("vision starter"), tmp_path)
    pictures = [png(gradient(56, 84)), png(noise(56, 56))]
    (tmp_path / "photos").mkdir()
    for number, data in enumerate(pictures):
        (tmp_path / "photos" / f"{number}.png").write_bytes(data)
    (tmp_path / "holiday.jpg").write_bytes(pictures[1])
    parquet(tmp_path / "pages.parquet", {"id": ["a", "b"], "image": pictures})
    for line in COMMANDS[4:6]:
        assert "2 vectors in 1 shards, 0 rows rejected" in done(command(line), tmp_path)
    assert len(re.findall(r"[01]\.png", done(command(COMMANDS[6]), tmp_path))) == 2
    assert re.findall(r"[01]\.png", done(command(COMMANDS[7]), tmp_path)) == ["1.png", "0.png"]
    for line in (*COMMANDS[6:8], "similarity a --image holiday.jpg", "rerank a --image holiday.jpg"):
        assert done(command(line), tmp_path), line


def test_every_command_is_here() -> None:
    assert [line.split()[0] for line in COMMANDS] == ["bulk", "search"] * 2 + ["bulk", "bulk", "search", "search"]
    assert list(EXAMPLES) == ["LanceDB", "FAISS", "usearch", "Qdrant", NEEDS_A_SERVER]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != NEEDS_A_SERVER])
def test_an_example_finds_what_exact_search_finds(folder: Path, name: str) -> None:
    """Each prints the id of the best row; all of them search exactly here, or a graph of 1,500 rows."""
    out = done([sys.executable, "-c", EXAMPLES[name]], folder)
    best = done(command(COMMANDS[1]), folder).splitlines()
    assert out.split()[-1] in "".join(best)


def test_the_example_for_a_server_is_python() -> None:
    compile(EXAMPLES[NEEDS_A_SERVER], NEEDS_A_SERVER, "exec")


@pytest.mark.parametrize("kind", ["float", "binary"])
def test_a_lancedb_table_and_its_index(folder: Path, kind: str) -> None:
    options = f" --embedding-type {kind} --sink lance --index"
    line = COMMANDS[0].replace("--out vectors", f"--out lance-{kind}") + options
    done(command(line), folder)
    out = done(command(COMMANDS[1].replace("search vectors", f"search lance-{kind}")), folder)
    assert len(re.findall(r"(perlfaq-en|code-docstring|xling-manpages)/", out)) == 5
    assert "this run: 0 shards" in done(command(line), folder)


def test_the_tables_are_those_of_the_result_files() -> None:
    assert (with_tables(SCALE), with_tables(BULK)) == (SCALE, BULK)
    assert [page.count("<!-- table: ") for page in (SCALE, BULK)] == [3, 1]
