"""The server under load, compared with the engine in this process and llama.cpp's own server, all in one run.

    python -m benchmarks.server_load [MODEL=starter-retrieval:Q8_0] [PARTS=throughput,overhead,fairness] [TEXTS=16]

Three parts, which can be run separately. Throughput: 64 clients, each with requests of TEXTS texts of 5 to 300 words,
against one call of the engine with the same texts; rounds alternate, medians are compared. Overhead: one short query
after another, HTTP time minus engine time. Fairness: one short query after another while a client sends requests of
2,000 texts, against the time of one batch. The load generator shares the processors with what it measures; how much
processor time it took is part of the result. What the server itself takes is a large share with the starter and a small
one with a model of the full width: give such a file and fewer texts; results are added to the starter's.
"""

import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import measuring
from nestling import Embedder
from nestling.models.local import resolve

STARTER = "starter-retrieval:Q8_0"
CLIENTS, REQUESTS_A_CLIENT = 64, 2
ROUNDS, QUERIES, BULK_TEXTS = 5, 300, 2000
PARTS = "throughput,overhead,fairness"
NAME = "server-load"
WORDS = ("the", "of", "server", "socket", "river", "quantum", "market", "piano", "bird", "open", "value", "letter")
NESTLING = "import sys; from nestling.cli import main; main()"
LLAMA = "import sys; from benchmarks.server_load import serve_llama; serve_llama(sys.argv[1])"


def main(reference: str = STARTER, parts: str = PARTS, texts_a_request: str = "16") -> None:
    """Measure the parts and write them into `benchmarks/results/server-load.json`, next to earlier ones."""
    embedder, path = Embedder.load(reference), str(resolve(reference))
    result = _before(reference)
    with child(NESTLING, "serve", "--model", reference, "--port", "0") as url:
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "throughput": partial(measure_both, embedder, url, path, int(texts_a_request)),
            "overhead": partial(measure_overhead, embedder, url),
            "fairness": lambda: asyncio.run(measure_fairness(url)),
        }
        for part in parts.split(","):
            began = Processors.read()
            found = measures[part]()
            result[part] = {**found, "others_share": Processors.read().foreign_share(began)}
            print(part, json.dumps(result[part]), flush=True)
    measuring.write(_name(reference), result)


def _name(reference: str) -> str:
    return NAME if reference == STARTER else f"{NAME}-{Path(reference).stem}"


def _before(reference: str) -> dict[str, Any]:
    """The parts that were measured before with the same model."""
    path = measuring.RESULTS / f"{_name(reference)}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    return {"model": Path(reference).name, **{part: known[part] for part in PARTS.split(",") if part in known}}


class Processors:
    """How busy the machine is, and how much of it is this process, its children and what it waits for."""

    def __init__(self, busy_s: float, own_s: float) -> None:
        self.busy_s, self.own_s = busy_s, own_s

    @classmethod
    def read(cls) -> "Processors":
        """Processor seconds since the machine started, and since this process and its children did."""
        tick = os.sysconf("SC_CLK_TCK")
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return cls((sum(fields) - fields[3] - fields[4]) / tick, sum(map(process_s, _tree(os.getpid()))))

    def foreign_share(self, before: "Processors") -> float:
        """Share of the processor time since `before` that went to anyone else."""
        busy, own = self.busy_s - before.busy_s, self.own_s - before.own_s
        return round(max(0.0, 1 - own / busy), 4)


def _tree(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for number in found for one in _tree(int(number)))]


def process_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own, and of children that have ended


def measure_both(embedder: Embedder, url: str, path: str, texts_a_request: int) -> dict[str, Any]:
    """Throughput of this server and of llama.cpp's, which is started when the other is done: it keeps a core busy."""
    requests = mixed_requests(CLIENTS * REQUESTS_A_CLIENT, texts_a_request)
    found = measure_throughput(embedder, url, requests)
    with child(LLAMA, path) as llama:
        rate = found["tokens"] / seconds_of(partial(load_now, llama, requests))
    engine = found["tokens_per_s"]["engine"]
    found["tokens_per_s"]["llama.cpp"] = rate
    return {**found, "llama.cpp_over_engine": rate / engine}


def mixed_requests(count: int, texts: int) -> list[list[str]]:
    """Requests of texts of 5 to 300 words, short ones more often; the same every time."""
    draw = random.Random(1)  # noqa: S311 - a seed, not a secret
    lengths = [[int(5 * 60 ** draw.random()) for _ in range(texts)] for _ in range(count)]
    return [[" ".join(draw.choices(WORDS, k=length)) for length in row] for row in lengths]


def measure_throughput(embedder: Embedder, url: str, requests: Sequence[list[str]]) -> dict[str, Any]:
    """Tokens per second of the engine and of the server, in alternating rounds; a first round warms up."""
    texts = [text for request in requests for text in request]
    tokens = sum(map(len, embedder.tokenize(texts)))
    ways: dict[str, Callable[[], object]] = {
        "engine": partial(embedder.encode, texts),
        "nestling": partial(load_now, url, requests),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    generator: list[float] = []
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            own, took = time.process_time(), seconds_of(way)
            if number:
                seconds[name].append(took)
                generator += [time.process_time() - own] if name == "nestling" else []
            print(number, name, round(took, 2), file=sys.stderr, flush=True)
    medians = {name: tokens / statistics.median(row) for name, row in seconds.items()}
    return {
        "texts": len(texts), "tokens": tokens, "seconds": seconds, "tokens_per_s": medians,
        "nestling_over_engine": medians["nestling"] / medians["engine"],
        "load_generator_cpu_s": statistics.median(generator),
    }  # fmt: skip


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
    body = {"input": texts, "encoding_format": "base64"}
    answer = await client.post(f"{url}/v1/embeddings", json=body)
    if answer.status_code != 200:
        sys.exit(f"{url}: {answer.status_code} {answer.text[:300]}")
    return time.perf_counter() - began


def measure_overhead(embedder: Embedder, url: str) -> dict[str, Any]:
    """Short queries, each over HTTP and in this process in turn, so that both find caches and cores the same.

    A bare socket asks: what it takes is the server's time, a packet each way and a few microseconds.
    """
    host, port = url.removeprefix("http://").split(":")
    over_http: list[float] = []
    in_process: list[float] = []
    with socket.create_connection((host, int(port))) as connection:
        for number in range(-20, QUERIES):
            query = f"How do I open socket number {abs(number)}?"
            http_s, engine_s = ask_bare(connection, query), seconds_of(partial(embedder.encode, [query]))
            if number >= 0:
                over_http.append(http_s)
                in_process.append(engine_s)
    http, engine = spread(over_http), spread(in_process)
    return {"http_ms": http, "engine_ms": engine, "p50_overhead_ms": http["p50"] - engine["p50"]}


def seconds_of(way: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def ask_bare(connection: socket.socket, text: str) -> float:
    """One request over a kept connection -> its seconds."""
    body = json.dumps({"input": [text], "encoding_format": "base64"}).encode()
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    began = time.perf_counter()
    connection.sendall(head % len(body) + body)
    answer = b""
    while not answer.endswith(b"}}"):  # where the usage ends, and with it the answer
        if not (piece := connection.recv(1 << 16)):
            sys.exit(f"the connection was closed: {answer[:300]!r}")
        answer += piece
    took = time.perf_counter() - began
    if b" 200 " not in answer[:20]:
        sys.exit(f"{answer[:300]!r}")
    return took


async def measure_fairness(url: str) -> dict[str, Any]:
    """Short queries while another client sends 2,000 texts again and again."""
    texts = [text for request in mixed_requests(BULK_TEXTS // 16, 16) for text in request]
    async with httpx.AsyncClient(timeout=600) as client:
        before = await stage(client, url)
        await ask(client, url, texts)
        after = await stage(client, url)  # the time of a batch of the bulk client's, while nobody else asks
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
        sent = await bulky
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
    found = dict(re.findall(r'nestling_stage_seconds_(sum|count)\{stage="inference"\} (\S+)', text))
    return float(found.get("sum", 0)), float(found.get("count", 0))


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
    """A server in its own process -> the address that it prints when it is ready."""
    with process(code, *arguments) as (_, url):
        yield url


@contextmanager
def process(code: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The same, with the process."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as started:
        assert started.stdout
        try:
            found = next((re.search(r"http://[\d.:]+", line) for line in started.stdout if "http://" in line), None)
            yield started, found[0] if found else sys.exit(f"{command}: no address")
        finally:
            seconds_to_stop(started)


def seconds_to_stop(started: "subprocess.Popen[str]") -> float:
    """Ask a process to end, and wait."""
    began = time.perf_counter()
    started.terminate()
    started.wait(60)
    return time.perf_counter() - began


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
