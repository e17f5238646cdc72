"""Clients that request much and never read: how much the server's memory grows, and whether others are served.

    python -m benchmarks.server_unread [CLIENTS=64] [TEXTS=2048]

Each client sends a request of TEXTS short texts to `nestling serve` with the starter and reads nothing. Growth is the
most that is resident while they wait, less what was before; it must stay below `BUDGET_MB`, the server's bound for
vectors, and what else a request in flight takes. Exit code 1 otherwise, or if a query in the meantime is not answered.
"""

import json
import re
import socket
import sys
import time
from urllib.parse import urlsplit

import httpx

from benchmarks import measuring
from benchmarks.server_load import NESTLING, process
from benchmarks.soak import MODEL, resident

BUDGET_MB, REQUEST_MB, WATCH_S = 64, 1, 20
"""Of vectors; of a request in flight: its body, texts, ids and the piece that is being sent."""


def main(clients: str = "64", texts: str = "2048") -> None:
    """Send, watch, write `benchmarks/results/server-unread.json`, exit with 1 if something was wrong."""
    raw = json.dumps({"input": ["a"] * int(texts)}).encode()
    command = ("serve", "--model", MODEL, "--port", "0", "--max-answer-mb", str(BUDGET_MB))
    with process(NESTLING, *command) as (child, url), httpx.Client(base_url=url, timeout=60) as client:
        client.post("/v1/embeddings", content=raw).raise_for_status()
        before = resident(child.pid)
        lazy = [_asked(url, raw) for _ in range(int(clients))]
        end, most = time.monotonic() + WATCH_S, before
        while time.monotonic() < end:
            most = max(most, resident(child.pid))
            time.sleep(0.05)
        status = client.post("/v1/embeddings", json={"input": "a query"}).status_code
        counted = re.findall(r"^nestling_(\S*(?:answer_bytes|answers\S*)) (\S+)$", client.get("/metrics").text, re.M)
        for one in lazy:
            one.close()
    growth = (most - before) / 2**20
    bound = BUDGET_MB + int(clients) * REQUEST_MB
    result = {
        "model": MODEL, "clients": int(clients), "texts": int(texts), "max_answer_mb": BUDGET_MB,
        "growth_mib": growth, "bound_mib": bound, "a_query_beside_them": status, "metrics": dict(counted),
    }  # fmt: skip
    print(measuring.write("server-unread", result).read_text())
    sys.exit(int(growth > bound or status != httpx.codes.OK))


def _asked(url: str, raw: bytes) -> socket.socket:
    place = urlsplit(url)
    client = socket.create_connection((place.hostname, place.port))
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
    client.sendall(head.encode() + raw)
    return client


if __name__ == "__main__":
    main(*sys.argv[1:])
