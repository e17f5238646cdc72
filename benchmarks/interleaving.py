"""A query during a long text: what it waits for, and how soon the server lets a long text go.

    python -m benchmarks.interleaving [MODEL=starter-retrieval:Q8_0] [TOKENS=32768] [QUERIES=300]

MODEL is a name or a file; for the full width with 4 of its 36 layers `python -m benchmarks.cpu_speed DIR` makes
`DIR/jina-v4-short-Q8_0.gguf`. One short query after another is asked alone, while another client sends texts of 512
tokens one after another, and while another client has a text of TOKENS tokens under way, again and again. The figure is
the query's 99th percentile during the long text over that during the short ones: at most 3. Then a long text's client
leaves, and at last the server is told to stop with no time to drain, a long text being under way: the seconds until the
engine rests, and until the process has ended (a second of it is the server's own, in which it closes connections).
Results go to `benchmarks/results/interleaving.json`, next to those of other models.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks import measuring
from benchmarks.server_load import NESTLING, STARTER, process, process_s, seconds_to_stop, spread

NAME = "interleaving"
BESIDE_TOKENS = 512
WARM = 10
REST_S, BUSY = 0.1, 0.1
"""The engine rests when the process takes less than this share of a processor for so long."""
LIMIT_S = 60.0


def main(reference: str = STARTER, tokens: str = "32768", queries: str = "300") -> None:
    """Measure, and write the model's row."""
    options = ("--token-input", "model", "--drain-s", "0")
    with process(NESTLING, "serve", "--model", reference, "--port", "0", *options) as (server, url):
        row = asyncio.run(measure(url, server, int(tokens), int(queries)))
        row["stop_s"] = seconds_to_stop(server)
    known = measuring.RESULTS / f"{NAME}.json"
    rows = json.loads(known.read_text())["rows"] if known.exists() else []
    name = Path(reference).name
    rows = [one for one in rows if (one["model"], one["long_tokens"]) != (name, int(tokens))]
    rows.append({"model": name, "long_tokens": int(tokens), "queries": int(queries), **row})
    print(measuring.write(NAME, {"rows": rows}).read_text())


async def measure(url: str, server: "subprocess.Popen[str]", tokens: int, queries: int) -> dict[str, Any]:
    """The three ways to ask queries, and the time until a long text is gone; one is under way in the end."""
    async with httpx.AsyncClient(timeout=3600) as client:
        await asked(client, url, WARM)
        alone = await asked(client, url, queries)
        async with busy(client, url, BESIDE_TOKENS):
            beside_short = await asked(client, url, queries)
        async with busy(client, url, tokens):
            beside_long = await asked(client, url, queries)
            began = time.perf_counter()
        cancel_s = await until_idle(server, began)
        found = {name: spread(row) for name, row in (("alone", alone), ("short", beside_short), ("long", beside_long))}
        await under_way(client, url, tokens)
    ratio = found["long"]["p99"] / found["short"]["p99"]
    return {"query_ms": found, "p99_long_over_short": ratio, "cancel_s": cancel_s}


async def asked(client: httpx.AsyncClient, url: str, count: int) -> list[float]:
    """Queries one after another: the seconds of each."""
    seconds = []
    for number in range(count):
        began = time.perf_counter()
        await embed(client, url, f"How do I open socket number {number}?")
        seconds.append(time.perf_counter() - began)
    return seconds


async def embed(client: httpx.AsyncClient, url: str, content: str | list[int]) -> None:
    """One request of one text, or of one text's token ids."""
    body = {"input": content, "encoding_format": "base64"}
    answer = await client.post(f"{url}/v1/embeddings", json=body)
    if answer.status_code != 200:
        sys.exit(f"{url}: {answer.status_code} {answer.text[:300]}")


@asynccontextmanager
async def busy(client: httpx.AsyncClient, url: str, tokens: int) -> AsyncIterator[None]:
    """While the block lasts, another client sends one text of so many tokens after another; then it leaves."""
    task = asyncio.create_task(repeated(client, url, tokens))
    await asyncio.sleep(1)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def repeated(client: httpx.AsyncClient, url: str, tokens: int) -> None:
    """Texts of random ids, without end."""
    draw = random.Random(1)  # noqa: S311 - a seed, not a secret
    while True:
        await embed(client, url, [draw.randrange(20_000) for _ in range(tokens)])


async def until_idle(server: "subprocess.Popen[str]", began: float) -> float:
    """Seconds from `began` until the process has begun to rest."""
    before, since = process_s(server.pid), time.perf_counter()
    while since - began < LIMIT_S:
        await asyncio.sleep(REST_S)
        now = process_s(server.pid)
        if now - before < BUSY * REST_S:
            return since - began
        before, since = now, time.perf_counter()
    sys.exit(f"the server is busy {LIMIT_S} s after the client left")


async def under_way(client: httpx.AsyncClient, url: str, tokens: int) -> None:
    """Begin a long text in its own process, which is left alone."""
    code = f"import asyncio, httpx; from benchmarks import interleaving as i; a = httpx.AsyncClient(timeout=3600); \
asyncio.run(i.repeated(a, {url!r}, {tokens}))"
    await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=subprocess.DEVNULL)
    for _ in range(100):
        await asyncio.sleep(REST_S)
        text = (await client.get(f"{url}/metrics")).text
        if "nestling_in_flight_requests 1.0" in text:
            return
    sys.exit("the long text does not arrive")


if __name__ == "__main__":
    main(*sys.argv[1:])
