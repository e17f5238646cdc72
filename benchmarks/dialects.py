"""Throughput of every dialect's embedding routes compared with OpenAI's with base64, all in one run.

    python -m benchmarks.dialects [MODEL=starter-retrieval:Q8_0] [SECONDS=300]

In a round, four clients ask every route in turn for the same texts, the routes in another order each time. A route's
figure is the median over the rounds of its speed over base64's in the same round; next to it is
the same ratio of the server's processor time, which other load on the machine does not change. Answers are read and
discarded: parsing their JSON is the client's cost.
"""

import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.server_load import NESTLING, STARTER, mixed_requests, process

CLIENTS, REQUESTS, TEXTS = 4, 8, 8
BASE = "OpenAI, base64"
Body = Callable[[list[str]], dict[str, Any]]
ROUTES: dict[str, tuple[str, Body]] = {
    BASE: ("/v1/embeddings", lambda texts: {"input": texts, "encoding_format": "base64"}),
    "OpenAI, floats": ("/v1/embeddings", lambda texts: {"input": texts}),
    "Jina": ("/v1/embeddings", lambda texts: {"input": texts, "task": "retrieval.query", "embedding_type": "float"}),
    "Ollama": ("/api/embed", lambda texts: {"input": texts}),
    "TEI": ("/embed", lambda texts: {"inputs": texts}),
    "llama-server": ("/embedding", lambda texts: {"content": texts}),
    "Cohere, v1": ("/v1/embed", lambda texts: {"texts": texts, "input_type": "search_query"}),
    "Cohere, v2": ("/v2/embed", lambda texts: {"texts": texts, "input_type": "search_query"}),
    "Cohere, v2, base64": (
        "/v2/embed", lambda texts: {"texts": texts, "input_type": "search_query", "embedding_types": ["base64"]},
    ),
    "Voyage": ("/v1/embeddings", lambda texts: {"input": texts, "truncation": True}),
    "Voyage, base64": (
        "/v1/embeddings", lambda texts: {"input": texts, "truncation": True, "encoding_format": "base64"},
    ),
    "vLLM": ("/pooling", lambda texts: {"input": texts}),
    "vLLM, base64": ("/pooling", lambda texts: {"input": texts, "encoding_format": "base64"}),
}  # fmt: skip


def main(reference: str = STARTER, limit_s: str = "300") -> None:
    """Measure and write `benchmarks/results/dialects.json`."""
    requests = mixed_requests(REQUESTS, TEXTS)
    seconds: dict[str, list[float]] = {name: [] for name in ROUTES}
    server: dict[str, list[float]] = {name: [] for name in ROUTES}
    draw = random.Random(1)  # noqa: S311 - a seed, not a secret
    with process(NESTLING, "serve", "--model", reference, "--port", "0") as (child, url):
        number, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(limit_s):  # whole rounds, the first one to warm up
            for name in draw.sample(list(ROUTES), len(ROUTES)):
                own = processor_s(child.pid)
                took = load(url, name, requests)
                if number:
                    seconds[name].append(took)
                    server[name].append(processor_s(child.pid) - own)
            number += 1
            print(number, file=sys.stderr, flush=True)
    result = {
        "model": reference, "rounds": number - 1, "texts_a_round": REQUESTS * TEXTS,
        "seconds": statistics.median(seconds[BASE]),
        "speed_over_base64": _ratios(seconds), "processor_time_over_base64": _ratios(server, inverse=True),
    }  # fmt: skip
    print(measuring.write("dialects", result).read_text())


def _ratios(values: dict[str, list[float]], *, inverse: bool = False) -> dict[str, float]:
    """Median over the rounds of base64's value over each route's; of its inverse for a cost."""
    found = {
        name: statistics.median(base / one for base, one in zip(values[BASE], row, strict=True))
        for name, row in values.items()
    }
    return {name: round(1 / one if inverse else one, 4) for name, one in found.items()}


def processor_s(pid: int) -> float:
    """What the threads of a process have run so far; to the nanosecond, which `/proc/PID/stat` is not."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def load(url: str, name: str, requests: Sequence[list[str]]) -> float:
    """Send all requests by one route, a fixed number of clients at a time -> seconds."""
    path, body = ROUTES[name]
    bodies = [json.dumps(body(texts)).encode() for texts in requests]
    waiting = iter(bodies)
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: _ask_all(url, path, waiting), range(CLIENTS)))
    return time.perf_counter() - began


def _ask_all(url: str, path: str, waiting: Iterator[bytes]) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
    for body in waiting:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {found[:300]!r}")
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
