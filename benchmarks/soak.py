"""The server under mixed load for a long time: does its memory grow, is any vector wrong?

    python -m benchmarks.soak [MINUTES=60] [LIMIT=0.02] [--dry]

Eight clients send short queries, requests of mixed length, long texts, token counts, errors and bodies that are not
JSON to `nestling serve` with the starter. One answer in ten is compared with the vectors of the reference engine's
arithmetic, which were computed before. Resident memory is read once a second; its growth is the median of the last
tenth over the median of the tenth that follows the warm-up (the first fifth, two minutes at least). Exit code 1 for a
wrong vector, a server error, or growth beyond LIMIT. Other load on the machine changes the number of
requests, not the verdict. With `--dry` the result is only shown, and not kept in `benchmarks/results`.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import measuring
from benchmarks.server_load import NESTLING, WORDS, process, seconds_to_stop
from nestling import Embedder
from nestling.vectors import Floats, paired_cosine

MODEL, CLIENTS, CHECKED = "starter-retrieval:Q8_0", 8, 10
NEAR = 0.999
"""The int8 engine's vectors and exact arithmetic's (see `pipeline.self_test`); a wrong one is at 0.9 or less."""
PATIENCE_S = 3600.0
"""A client's: the machine may stop us all for a while."""
WARM_UP_SHARE, WARM_UP_S = 0.2, 120.0
KNOWN = 400
"""Texts whose vectors are recorded before the load begins."""


@dataclass
class Soak:
    """What is sent, what is known of the right answers, and what came back."""

    texts: list[str]
    recorded: Floats
    draw: random.Random
    statuses: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    lowest: float = 1.0
    wrong: int = 0

    def check(self, places: list[int], rows: list[list[float]]) -> None:
        """Hold the vectors of known texts against the recorded ones."""
        cosines = paired_cosine(np.array(rows, np.float32), self.recorded[places])
        self.compared += len(places)
        self.lowest = min(self.lowest, float(cosines.min()))
        self.wrong += int((~(cosines >= NEAR)).sum())


def main(minutes: str = "60", limit: str = "0.02", dry: str = "") -> None:
    """Run, keep the result, and exit with 1 if something was wrong."""
    draw = random.Random(5)  # noqa: S311 - a seed, not a secret
    texts = [" ".join(draw.choices(WORDS, k=int(3 * 60 ** draw.random()))) for _ in range(KNOWN)]
    soak = Soak(texts, Embedder.load(MODEL, engine="reference").encode(texts), draw)
    with process(NESTLING, "serve", "--model", MODEL, "--port", "0") as (child, url):
        memory = asyncio.run(run(soak, url, child.pid, 60 * float(minutes)))
        stopped_s = seconds_to_stop(child)
    result = verdict(soak, memory) | {"minutes": float(minutes), "seconds_to_stop": stopped_s}
    print(json.dumps({key: value for key, value in result.items() if key != "resident_mib"}, indent=1))
    if not dry:
        print(measuring.write("server-soak", result))
    bad = soak.wrong or soak.statuses["5xx"] or result["growth"] > float(limit) or not soak.compared
    sys.exit(int(bool(bad)))


async def run(soak: Soak, url: str, pid: int, seconds: float) -> list[tuple[float, int]]:
    """Send until the time is over -> (seconds, resident bytes) once a second."""
    began, memory = time.monotonic(), list[tuple[float, int]]()
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:

        async def work() -> None:
            while time.monotonic() - began < seconds:
                await soak.draw.choices(list(KINDS), list(KINDS.values()))[0](soak, client)

        working = asyncio.gather(*(work() for _ in range(CLIENTS)))
        while not working.done():
            await asyncio.sleep(1)
            memory.append((time.monotonic() - began, resident(pid)))
        await working
    return memory


async def send(soak: Soak, client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:  # noqa: ANN401 - any JSON, or bytes
    """One request, counted by the hundred of its status."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post(path, content=content)
    soak.statuses[f"{answer.status_code // 100}xx"] += 1
    return answer


async def known(soak: Soak, client: httpx.AsyncClient, count: int) -> None:
    """Embed texts whose vectors are known; one request in `CHECKED` is compared."""
    places = [soak.draw.randrange(KNOWN) for _ in range(count)]
    answer = await send(soak, client, "/v1/embeddings", {"input": [soak.texts[place] for place in places]})
    if answer.status_code == 200 and soak.draw.randrange(CHECKED) == 0:
        soak.check(places, [item["embedding"] for item in answer.json()["data"]])


async def query(soak: Soak, client: httpx.AsyncClient) -> None:
    """A single known text."""
    await known(soak, client, 1)


async def several(soak: Soak, client: httpx.AsyncClient) -> None:
    """Known texts of mixed length."""
    await known(soak, client, soak.draw.randint(2, 24))


async def fresh(soak: Soak, client: httpx.AsyncClient) -> None:
    """Texts that were never seen, in any form and size."""
    texts = [" ".join(soak.draw.choices(WORDS, k=soak.draw.randint(1, 200))) for _ in range(soak.draw.randint(1, 8))]
    form = soak.draw.choice(["float", "base64", "int8", "binary", "ubinary"])
    size = soak.draw.choice([32, 64, 128, 256])
    await send(soak, client, "/v1/embeddings", {"input": texts, "embedding_type": form, "dimensions": size})


async def long(soak: Soak, client: httpx.AsyncClient) -> None:
    """A text of thousands of tokens, which goes in pieces."""
    await send(
        soak, client, "/v1/embeddings", {"input": " ".join(soak.draw.choices(WORDS, k=soak.draw.randint(1500, 6000)))}
    )


async def count(soak: Soak, client: httpx.AsyncClient) -> None:
    """Token ids of a text."""
    await send(soak, client, "/tokenize", {"content": soak.draw.choice(soak.texts)})


async def mistake(soak: Soak, client: httpx.AsyncClient) -> None:
    """What is refused."""
    bodies: list[Any] = [
        {"input": ""},
        {"input": [1, 2]},
        b"{",
        {"input": "a", "dimensions": 3},
        {"input": ["a"] * 5000},
    ]
    await send(soak, client, "/v1/embeddings", soak.draw.choice(bodies))


KINDS: dict[Callable[[Soak, httpx.AsyncClient], Awaitable[None]], int] = {
    query: 60, several: 20, fresh: 20, long: 1, count: 10, mistake: 10,
}  # fmt: skip
"""What a client does next, with its weight."""


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def verdict(soak: Soak, memory: list[tuple[float, int]]) -> dict[str, Any]:
    """Growth of memory after the warm-up, and what was answered."""
    whole = memory[-1][0]
    warm = max(WARM_UP_SHARE * whole, min(WARM_UP_S, whole / 2))
    tenth = (whole - warm) / 10
    first = statistics.median(size for at, size in memory if warm <= at < warm + tenth)
    last = statistics.median(size for at, size in memory if at >= whole - tenth)
    every = max(1, len(memory) // 60)
    return {
        "model": MODEL, "answers": dict(soak.statuses), "vectors_compared": soak.compared,
        "lowest_cosine": soak.lowest, "wrong_vectors": soak.wrong, "warm_up_s": warm,
        "resident_mib_after_warm_up": first / 2**20, "resident_mib_at_the_end": last / 2**20,
        "growth": last / first - 1, "resident_mib": [round(size / 2**20, 1) for _, size in memory[::every]],
    }  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
