"""Run every real client, every example of docs/server.md and every recorded request against `nestling serve`.

    python -m tests.contract.clients.run PYTHON [NAME ...]

PYTHON is the interpreter of an environment with requirements.txt in it; package.json's packages are installed beside it
if npm is there. Writes benchmarks/results/clients.json: of each client the versions of its packages, whether it got the
vectors of Python, and the largest difference of a component; of the named ones alone, if there are names. Exit code 1
if one failed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.clients.expected import SAME, Expected
from tests.contract.clients.python_clients import CLIENTS
from tests.contract.clients.recorded import REQUESTS, Request
from tests.contract.clients.table import DOCUMENTS
from tests.contract.snippets import Snippet, snippets

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
RESULT = ROOT / "benchmarks" / "results" / "clients.json"
NESTLING = Path(sys.executable).with_name("nestling")
NODE = HERE / "node_clients.mjs"
TIMEOUT_S = 300
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "0", "ANONYMIZED_TELEMETRY": "False"}
OK, NODE_MARK = "ok", " (Node)"
DEVELOPMENT = (
    "ollama", "ollama, async", "huggingface_hub", "cohere, v2", "cohere, v1",
    "LanceDB, Ollama", "LanceDB, OpenAI", "LanceDB, Cohere", "qdrant-client, OpenAI",
)  # fmt: skip
"""Clients whose packages are development packages, run by the contract tests too; there they are the newest."""


class FailedError(Exception):
    """What a client said last."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One client and how it is tried: by a program, a recorded request or an example."""

    name: str
    api: str
    how: str
    command: Sequence[str] = ()
    request: Request | None = None
    snippet: Snippet | None = None
    serve: tuple[str, ...] = ()


def attempts(python: str, folder: Path, *, node: bool) -> Iterator[Attempt]:
    """All of them; without Node's if need be."""
    for name, client in CLIENTS.items():
        command = python_command(name, sys.executable if name in DEVELOPMENT else python)
        yield Attempt(name, client.api, "Python", command, serve=client.serve)
    if node:
        for name, api in installed_for_node(folder).items():
            yield Attempt(name + NODE_MARK, api, "Node", ["node", str(folder / NODE.name), name])
    for name, snippet in snippets().items():
        yield Attempt(
            f"{name}, documented", "OpenAI", "example of docs/server.md", [python, str(folder)], snippet=snippet
        )
    for name, request in REQUESTS.items():
        yield Attempt(name, request.api, f"request as in {request.source}", request=request)


def python_command(name: str, python: str = sys.executable) -> list[str]:
    """What runs a client of `python_clients`, but for the address."""
    return [python, "-W", "ignore", "-m", "tests.contract.clients.python_clients", name]


def installed_for_node(folder: Path) -> dict[str, str]:
    """Install package.json in a folder -> each client for Node and its API."""
    for file in (NODE, HERE / "package.json"):
        shutil.copy(file, folder)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return dict(json.loads(said(["node", NODE.name], folder)))


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """`nestling serve` on a free port -> its address."""
    with subprocess.Popen([NESTLING, "serve", "--port", "0", *flags], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            found = re.search(r"http://[\d.:]+", child.stdout.readline())
            yield found[0] if found else sys.exit("the server did not start")
        finally:
            child.terminate()


def said(command: Sequence[str], folder: Path) -> str:
    """The last line that a program prints; FailedError with the last of its errors."""
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder, env=environment, check=False
    )
    if done.returncode:
        raise FailedError((done.stderr.strip().splitlines() or ["(nothing)"])[-1])
    return done.stdout.strip().splitlines()[-1]


def sent(request: Request, url: str) -> dict[str, Any]:
    """Ask what the client asks first, then send the recorded request -> what it found."""
    for path in request.asks:
        answered(urllib.request.Request(url + path, headers=dict(request.headers)))
    headers = {"Content-Type": "application/json", **request.headers}
    body = json.dumps(request.body).encode()
    return request.read(json.loads(answered(urllib.request.Request(url + request.path, body, headers))))


def answered(request: urllib.request.Request) -> bytes:
    """The body of an answer that is no error; the standard library's client sends headers as they are given."""
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return bytes(answer.read())


def exampled(snippet: Snippet, url: str, python: str, folder: Path) -> dict[str, Any]:
    """Run an example -> its vector."""
    code = snippet.at(url)
    (folder / "example.mjs").write_text(f"{code}\nconsole.log(JSON.stringify(vector));", "utf-8")
    commands = {
        "python": [python, "-W", "ignore", "-c", f"{code}\nprint([float(number) for number in vector])"],
        "javascript": ["node", "example.mjs"],
        "bash": ["bash", "-c", code],
    }
    found = json.loads(said(commands[snippet.language], folder))
    vector = found["data"][0]["embedding"] if isinstance(found, dict) else found
    return {"passage" if DOCUMENTS[1] in code else "query": vector}


def tried(attempt: Attempt, url: str, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a client found, and its versions."""
    if attempt.request:
        return sent(attempt.request, url), {}
    if attempt.snippet:
        return exampled(attempt.snippet, url, attempt.command[0], folder), {}
    answer = json.loads(said([*attempt.command, url], folder))
    return answer["found"], answer["versions"]


def outcome(attempt: Attempt, url: str, folder: Path, expected: Expected) -> dict[str, Any]:
    """One line of the result."""
    line: dict[str, Any] = {"api": attempt.api, "how": attempt.how}
    try:
        found, versions = tried(attempt, url, folder)
        difference = expected.largest_difference(found)
    except (FailedError, ValueError, OSError, subprocess.TimeoutExpired) as error:
        return {**line, "outcome": f"{error}"[:300]}
    line |= {"gave": sorted(found), "versions": versions, "largest_difference": float(f"{difference:.2g}")}
    return {**line, "outcome": OK if difference < SAME else "other vectors than Python's"}


def main(python: str, names: Sequence[str] = ()) -> int:
    """Run all, or those of `names`; the exit code."""
    expected = Expected.load()
    lines: dict[str, Any] = json.loads(RESULT.read_text("utf-8"))["clients"] if names else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        node = bool(shutil.which("npm")) and (not names or any(name.endswith(NODE_MARK) for name in names))
        chosen = [one for one in attempts(python, folder, node=node) if not names or one.name in names]
        for flags in dict.fromkeys(one.serve for one in chosen):
            with serving(*flags) as url:
                for attempt in (one for one in chosen if one.serve == flags):
                    lines[attempt.name] = outcome(attempt, url, folder, expected)
                    sys.stdout.write(f"{attempt.name}: {lines[attempt.name]['outcome']}\n")
                    sys.stdout.flush()
    ordered = {"command": "make clients", "clients": dict(sorted(lines.items()))}
    RESULT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return int(any(line["outcome"] != OK for line in lines.values()))


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).absolute()), sys.argv[2:]))  # clients run in a folder of their own
