"""Run every client example of docs/server.md, LangChain's default mode and Voyage's client against `nestling serve`.

    python -m tests.contract.clients.run PYTHON

PYTHON is the interpreter of an environment with requirements.txt in it; Node's client is installed beside it if npm is
there. Prints a line a client and records it with the packages' versions in benchmarks/results/clients.json; exit code 1
if one failed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.contract.snippets import snippets

RESULT = Path(__file__).parents[3] / "benchmarks" / "results" / "clients.json"
PACKAGES = (
    "openai",
    "langchain-openai",
    "llama-index-embeddings-openai-like",
    "haystack-ai",
    "litellm",
    "mteb",
    "voyageai",
)
NESTLING = Path(sys.executable).with_name("nestling")
TIMEOUT_S = 300
SKIPPED = "skipped: "
DIMENSIONS = "256"
OFFLINE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "0"}
LANGCHAIN = """
import os, llama_index.core  # the latter brings cl100k's vocabulary, which tiktoken would fetch
os.environ["TIKTOKEN_CACHE_DIR"] = os.path.dirname(llama_index.core.__file__) + "/_static/tiktoken_cache"
from langchain_openai import OpenAIEmbeddings
def embedded(**more):
    client = OpenAIEmbeddings(base_url="{url}/v1", api_key="none", model="starter", max_retries=0, **more)
    return client.embed_query("How do I open a socket?")
"""
REFUSED = (
    LANGCHAIN
    + """
try:
    embedded()
except Exception as error:
    print(256 if "check_embedding_ctx_length=False" in str(error) else error)
"""
)
READ_BACK = (
    LANGCHAIN
    + """
left, right = embedded(), embedded(check_embedding_ctx_length=False)
print(256 if sum(a * b for a, b in zip(left, right)) > 0.9999 else "not the same")
"""
)
VOYAGE = """
import voyageai
client = voyageai.Client(api_key="none", base_url="{url}/v1")
print(len(client.embed(["How do I open a socket?"], model="starter", input_type="query").embeddings[0]))
"""


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


def last_line(command: list[str], folder: str) -> str:
    """What a program prints last, or how it failed."""
    environment = {**os.environ, **OFFLINE}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return "timed out"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else "(nothing)"


def in_shell(code: str, _python: str, folder: str) -> str:
    """The number of dimensions that a curl command gets."""
    answer = last_line(["bash", "-c", code], folder)
    return str(2 * len(json.loads(answer)["data"][0]["embedding"]))  # it asks for half of them


def in_python(code: str, python: str, folder: str) -> str:
    """What a Python program prints last."""
    found = last_line([python, "-W", "ignore", "-c", code], folder)
    return SKIPPED + "mteb is not installed (it brings torch)" if "No module named 'mteb'" in found else found


def in_node(code: str, _python: str, folder: str) -> str:
    """What a program for Node prints last."""
    if not shutil.which("npm"):
        return SKIPPED + "no npm"
    subprocess.run(["npm", "install", "--silent", "openai"], cwd=folder, check=True, capture_output=True)
    Path(folder, "client.mjs").write_text(code, "utf-8")
    return last_line(["node", "client.mjs"], folder)


RUNNERS = {"bash": in_shell, "python": in_python, "javascript": in_node}


def examples(python: str, folder: str) -> Iterator[tuple[str, str]]:
    """Each client and `256`, or how it failed."""
    with serving() as url:
        for client, snippet in snippets().items():
            yield client, RUNNERS[snippet.language](snippet.at(url), python, folder)
        yield "voyageai", in_python(VOYAGE.replace("{url}", url), python, folder)
        yield "LangChain, default mode", in_python(REFUSED.replace("{url}", url), python, folder)
    if find_spec("bpe_openai") is None:
        yield "LangChain, default mode, cl100k", SKIPPED + "pip install 'nestling[cl100k]'"
        return
    with serving("--token-input", "cl100k") as url:
        yield "LangChain, default mode, cl100k", in_python(READ_BACK.replace("{url}", url), python, folder)


def versions(python: str, folder: str) -> dict[str, str]:
    """Package -> its version in the clients' environment; curl's and Node's client's too."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    found = {item["name"]: item["version"] for item in json.loads(listed.stdout) if item["name"] in PACKAGES}
    found["curl"] = last_line(["bash", "-c", "curl --version | head -1 | cut -d' ' -f2"], folder)
    node = Path(folder, "node_modules", "openai", "package.json")
    if node.exists():
        found["openai (Node)"] = json.loads(node.read_text("utf-8"))["version"]
        found["node"] = last_line(["node", "--version"], folder)
    return found


def main(python: str) -> int:
    """Run all; the exit code."""
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for client, found in examples(python, folder):
            outcomes[client] = "ok" if found == DIMENSIONS else found[:300]
            sys.stdout.write(f"{client}: {outcomes[client]}\n")
            sys.stdout.flush()
        record = {"command": "make clients", "outcomes": outcomes, "versions": versions(python, folder)}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return int(any(outcome != "ok" and not outcome.startswith(SKIPPED) for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).absolute())))  # examples run in a folder of their own
