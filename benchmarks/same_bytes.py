"""Compare this checkout with another: built files, vectors and HTTP answers, byte for byte.

    python -m benchmarks.same_bytes OTHER_CHECKOUT

Each side builds the starter (three tasks, three file types, heads, an importance matrix), embeds texts of many
kinds, and answers requests of a server; each in its own processes, with an empty cache and its own sources first on
the path. Prints one line for everything compared; exit code 1 for a difference. Times, request ids and a card's
fields about the program itself are ignored.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parents[1]
QUANTS = "F16,Q8_0,Q4_K_M"
MAIN = "import sys; from nestling.cli import main; main()"
TEXTS = ("How do I open a socket?", "浜辺に沈む美しい夕日", "word " * 150, "e\u0301 👩‍👩‍👧‍👦\u202eabc", "x")
REQUESTS: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/embeddings", {"model": "starter", "input": list(TEXTS)}),
    ("POST", "/v1/embeddings", {"model": "starter/code.passage", "input": "def f(): pass", "dimensions": 64}),
    ("POST", "/v1/embeddings", {"model": "starter", "input": "a", "encoding_format": "base64"}),
    ("POST", "/v1/embeddings", {"model": "starter", "input": "a", "embedding_type": "ubinary"}),
    ("POST", "/v1/embeddings", {"model": "starter", "input": ["a b c"], "return_multivector": True}),
    ("POST", "/v1/embeddings", {"model": "starter", "input": ["a b.", "c d."], "late_chunking": True}),
    ("POST", "/v1/rerank", {"model": "starter", "query": "socket", "documents": ["ls", "socket(2)"]}),
    ("POST", "/tokenize", {"content": "How do I open a socket?"}),
    ("POST", "/v1/embeddings", {"model": "starter", "input": ""}),
    ("POST", "/v1/embeddings", {"model": "starter", "input": "a", "dimensions": 300}),
    ("POST", "/v1/embeddings", {"model": "nobody", "input": "a"}),
    ("GET", "/nowhere", None),
)
VECTORS = """
import hashlib, json, sys
import nestling
from nestling.compat import JinaEmbeddingsV4
texts = json.loads(sys.argv[1])
for task in ("retrieval", "text-matching", "code"):
    for quant, engine in (("F16", "openvino"), ("Q8_0", "openvino"), ("Q4_K_M", "openvino"), ("Q8_0", "llamacpp")):
        model = nestling.Embedder.load(f"starter-{task}:{quant}", engine=engine, threads=1)
        for prompt in ("query", "passage", "raw"):
            found = model.encode(texts, prompt_name=prompt).tobytes()
            print(f"vectors {task} {quant} {engine} {prompt}", hashlib.sha256(found).hexdigest())
        model.close()
model = nestling.Embedder.load("starter-retrieval:Q8_0", threads=1)
rows = b"".join(one.tobytes() for one in model.encode_tokens(texts))
print("vectors of tokens", hashlib.sha256(rows).hexdigest())
spans = model.encode_chunks("A text. Another one.", spans=[(0, 7), (7, 20)])
print("vectors of chunks", hashlib.sha256(spans.vectors.tobytes()).hexdigest())
print("rerank", [(one.index, one.score) for one in model.rerank("socket", texts)])
"""


def main(other: str) -> None:
    """Ask both sides, print what is equal and what is not."""
    ours, theirs = _facts(HERE), _facts(Path(other).resolve())
    different = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    for name in sorted(ours.keys() | theirs.keys()):
        print("DIFFERENT" if name in different else "same     ", name)
    for name in sorted(different):
        print(f"\n{name}\n  here:  {ours.get(name)}\n  there: {theirs.get(name)}")
    print(f"\n{len(ours) - len(different)} of {len(ours)} the same")
    sys.exit(bool(different))


def _facts(checkout: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "NESTLING_CACHE": cache,
            "PYTHONPATH": f"{checkout / 'src'}:{checkout / 'data' / 'src'}",
        }
        _run(environment, MAIN, "build", "--quant", QUANTS)
        return _files(Path(cache)) | _vectors(environment) | _answers(environment)


def _run(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/").stdout


def _files(folder: Path) -> dict[str, str]:
    """Every GGUF file by its name: the hash of its bytes."""
    return {f"file {path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.gguf")}


def _vectors(environment: dict[str, str]) -> dict[str, str]:
    lines = _run(environment, VECTORS, json.dumps(TEXTS)).splitlines()
    return dict(line.rsplit(" ", 1) if line.startswith("vectors") else line.split(" ", 1) for line in lines)


def _answers(environment: dict[str, str]) -> dict[str, str]:
    with _served(environment) as url, httpx.Client(base_url=url, timeout=120) as client:
        return dict(_answer(client, *request) for request in REQUESTS)


def _answer(client: httpx.Client, method: str, path: str, body: Any) -> tuple[str, str]:  # noqa: ANN401 - JSON
    answer = client.request(method, path, json=body)
    text = re.sub(r'"(created|id|request_id)": ?("[^"]*"|\d+)', "", answer.text)
    return f"{method} {path} {json.dumps(body, ensure_ascii=False)[:90]}", f"{answer.status_code} {text}"


@contextmanager
def _served(environment: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd="/") as child:
        assert child.stdout
        found = re.search(r"http://[\d.:]+", child.stdout.readline())
        assert found, "the server said no address"
        yield found[0]
        child.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
