"""`nestling serve --adapters` and the examples of docs/adapters.md, as a user would run them."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from benchmarks import adapters as benchmark
from tests.contract.conftest import NESTLING, Served

from nestling import Embedder
from nestling.spec import Task

BLOCKS = re.findall(r"^```python\n(.*?)^```", benchmark.DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"
TEXTS = ["read a file line by line", "def add(a, b): return a + b", "海滩上美丽的日落"]
SAME = 0.999
"""Q8_0 of the base and of the merged weights are rounded apart; the promise for Q8_0."""


@pytest.fixture(scope="module")
def adapted(cache_folder: Path) -> Iterator[Served]:
    assert cache_folder.is_dir()
    with subprocess.Popen([NESTLING, "serve", "--adapters", "--port", "0"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            found = re.search(r"http://[\d.:]+", child.stdout.readline())
            assert found
            yield Served(found[0], child.stdout.readline())
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
        finally:
            child.kill()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_example(adapted: Served) -> None:
    assert adapted.url  # the base is built by now
    assert "(1, 128)" in run(BLOCKS[0])


def test_the_openai_example(adapted: Served) -> None:
    assert ADDRESS in BLOCKS[1]
    printed = run(BLOCKS[1].replace(ADDRESS, adapted.url))
    assert printed.split() == ["retrieval", "256", "text-matching", "256", "code", "256"]


def test_every_task_is_its_merged_model(adapted: Served) -> None:
    for task in Task:
        body = {"model": "starter", "task": task, "input": TEXTS}
        answer = httpx.post(f"{adapted.url}/v1/embeddings", json=body, timeout=30)
        found = np.array([item["embedding"] for item in answer.json()["data"]])
        wanted = Embedder.load(f"starter-{task}:Q8_0").encode_query(TEXTS)
        assert (found * wanted).sum(1).min() > SAME, task


def test_models_lists_the_tasks(adapted: Served) -> None:
    models = {item["id"]: item["tasks"] for item in httpx.get(f"{adapted.url}/v1/models").json()["data"]}
    assert models["starter"] == ["retrieval", "text-matching", "code"]
    assert models["starter-code"] == ["code"]


def test_the_table_is_that_of_the_result_file() -> None:
    text = benchmark.DOCUMENT.read_text("utf-8")
    assert benchmark.with_table(text) == text
    assert benchmark.table() in text
