"""The server under load, beside the engine in this process and llama.cpp's own server, all in one run.

    python -m benchmarks.server_load [MODEL=starter-retrieval:Q8_0] [ROUNDS=5]

Three questions. Throughput: 64 clients, each with requests of 16 texts of 5 to 300 words, against one call of the
engine with the same texts; rounds alternate, medians are compared. Overhead: one short query after another, HTTP less
engine. Fairness: one short query after another while a client sends requests of 2,000 texts, against the time of one
batch. The load generator shares the processors with what it measures.
"""

import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx

from benchmarks import measuring
from nestling import Embedder
from nestling.store import resolve

CLIENTS, TEXTS_A_REQUEST, REQUESTS_A_CLIENT = 64, 16, 2
QUERIES, BULK_TEXTS = 300, 2000
WORDS = ("the", "of", "server", "socket", "river", "quantum", "market", "piano", "bird", "open", "value", "letter")
NESTLING = "import sys; from nestling.cli import main; main()"
LLAMA = "import sys; from benchmarks.server_load import serve_llama; serve_llama(sys.argv[1])"


def main(reference: str = "starter-retrieval:Q8_0", rounds: str = "5") -> None:
    """Measure everything and write `benchmarks/results/server-load.json`."""
    embedder, path = Embedder.load(reference), str(resolve(reference))
    requests = mixed_requests(CLIENTS * REQUESTS_A_CLIENT)
    with child(NESTLING, "serve", "--model", reference, "--port", "0") as url, child(LLAMA, path) as llama:
        throughput = measure_throughput(embedder, {"nestling": url, "llama.cpp": llama}, requests, int(rounds))
        overhead = measure_overhead(embedder, url)
        fairness = asyncio.run(measure_fairness(url))
    result = {"model": reference, "throughput": throughput, "overhead": overhead, "fairness": fairness}
    print(measuring.write("server-load", result).read_text())


def mixed_requests(count: int) -> list[list[str]]:
    """Requests of texts of 5 to 300 words, short ones more often; the same every time."""
    draw = random.Random(1)  # noqa: S311 - a seed, not a secret
    lengths = [[int(5 * 60 ** draw.random()) for _ in range(TEXTS_A_REQUEST)] for _ in range(count)]
    return [[" ".join(draw.choices(WORDS, k=length)) for length in row] for row in lengths]


def measure_throughput(
    embedder: Embedder, urls: dict[str, str], requests: Sequence[list[str]], rounds: int
) -> dict[str, Any]:
    """Tokens per second of the engine and of each server, in alternating rounds."""
    texts = [text for request in requests for text in request]
    tokens = sum(map(len, embedder.tokenize(texts)))
    ways: dict[str, Callable[[], object]] = {"engine": partial(embedder.encode, texts)}
    ways |= {name: partial(load_now, url, requests) for name, url in urls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: tokens / statistics.median(row) for name, row in seconds.items()}
    shares = {f"{name}_over_engine": rate / medians["engine"] for name, rate in medians.items() if name != "engine"}
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": medians, **shares}


def load_now(url: str, requests: Sequence[list[str]]) -> None:
    """Send the requests and wait."""
    asyncio.run(load(url, requests))


async def load(url: str, requests: Sequence[list[str]]) -> None:
    """Send the requests, a fixed number of clients at a time."""
    waiting: Iterator[list[str]] = iter(requests)
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=CLIENTS)) as client:

        async def one() -> None:
            for request in waiting:
                await ask(client, url, request)

        await asyncio.gather(*(one() for _ in range(CLIENTS)))


async def ask(client: httpx.AsyncClient, url: str, texts: list[str]) -> float:
    """One request -> its seconds."""
    began = time.perf_counter()
    body = {"model": "starter", "input": texts, "encoding_format": "base64"}
    answer = await client.post(f"{url}/v1/embeddings", json=body)
    if answer.status_code != 200:
        sys.exit(f"{url}: {answer.status_code} {answer.text[:300]}")
    return time.perf_counter() - began


def measure_overhead(embedder: Embedder, url: str) -> dict[str, Any]:
    """Short queries one after another, over HTTP and in this process, in alternating blocks."""
    over_http: list[float] = []
    in_process: list[float] = []

    async def block(queries: Sequence[str]) -> None:
        async with httpx.AsyncClient() as client:
            await ask(client, url, ["warm"])
            over_http.extend([await ask(client, url, [query]) for query in queries])

    for start in range(0, QUERIES, 50):
        queries = [f"How do I open socket number {n}?" for n in range(start, start + 50)]
        asyncio.run(block(queries))
        for query in queries:
            began = time.perf_counter()
            embedder.encode([query])
            in_process.append(time.perf_counter() - began)
    http, engine = spread(over_http), spread(in_process)
    return {"http_ms": http, "engine_ms": engine, "p50_overhead_ms": http["p50"] - engine["p50"]}


async def measure_fairness(url: str) -> dict[str, Any]:
    """Short queries while another client sends 2,000 texts again and again."""
    texts = [text for request in mixed_requests(BULK_TEXTS // TEXTS_A_REQUEST) for text in request]
    async with httpx.AsyncClient(timeout=600) as client:
        before = await stage(client, url)
        going = True

        async def bulk() -> int:
            sent = 0
            while going:
                await ask(client, url, texts)
                sent += 1
            return sent

        bulky = asyncio.ensure_future(bulk())
        await asyncio.sleep(1)
        seconds = [await ask(client, url, [f"How do I open socket number {n}?"]) for n in range(QUERIES // 3)]
        going = False
        sent, after = await bulky, await stage(client, url)
    batch_ms = 1000 * (after[0] - before[0]) / (after[1] - before[1])
    query = spread(seconds)
    return {
        "bulk_requests": sent,
        "mean_batch_ms": batch_ms,
        "query_ms": query,
        "p99_over_batch": query["p99"] / batch_ms,
    }


async def stage(client: httpx.AsyncClient, url: str) -> tuple[float, float]:
    """Seconds and number of batches so far."""
    text = (await client.get(f"{url}/metrics")).text
    found = re.findall(r'nestling_stage_seconds_(?:sum|count)\{stage="inference"\} (\S+)', text)
    return float(found[0]), float(found[1])


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50": 1000 * statistics.median(ordered),
        "p99": 1000 * ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)],
        "max": 1000 * ordered[-1],
    }


@contextmanager
def child(code: str, *arguments: str) -> Iterator[str]:
    """A server in a process of its own, which prints its address when it is ready."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            found = next((re.search(r"http://[\d.:]+", line) for line in process.stdout if "http://" in line), None)
            yield found[0] if found else sys.exit(f"{command}: no address")
        finally:
            process.terminate()
            process.wait(60)


def serve_llama(path: str) -> None:
    """llama.cpp's server with what a careful user would set: mean pooling, one unified cache, room for the texts."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_ctx = params.n_batch = params.n_ubatch = 2048
    params.n_parallel, params.kv_unified, params.verbosity = 16, True, -1
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    time.sleep(1 << 30)


if __name__ == "__main__":
    main(*sys.argv[1:])
