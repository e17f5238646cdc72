"""The server's own cost: the real process with an engine that answers at once, all in one run of under two minutes.

    python -m benchmarks.server_instant [SECONDS=1.5]

Every text has 16 tokens, prefix included. One client process keeps `CONNECTIONS` connections busy with requests made
beforehand, and reads answers without parsing them. For each vector width, encoding and request size, SECONDS in each of
`ROUNDS` rounds, of which medians are given: tokens per second, where server and client share the machine's processors,
and the processor time that each takes per 1,000 tokens, which other load on the machine changes less.
"""

import json
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, product
from math import inf
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.server_load import process, process_s
from nestling import Embedder
from nestling.engine import batching
from nestling.engine.protocol import Item
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.local import resolve
from nestling.server.process import run
from nestling.server.settings import ServeSettings
from nestling.vectors import Floats

STARTER = "starter-retrieval:Q8_0"
WIDTHS, SIZES, ENCODINGS = (2048, 256), (1, 16, 64, 256), ("base64", "float")
TOKENS, CONNECTIONS, ROUNDS, BODIES = 16, 8, 3, 16
SERVER = "import sys; from benchmarks.server_instant import serve; serve(int(sys.argv[1]))"
CLIENT = "from benchmarks.server_instant import ask; ask()"


class Instant:
    """An engine that looks its answers up: rows of a table, by a checksum of the ids."""

    name, reason = "instant", "a benchmark's"
    token_budget, spare_pairs = batching.TOKEN_BUDGET, inf

    def __init__(self, width: int) -> None:
        self._rows: Floats = np.random.default_rng(1).standard_normal((4096, width), np.float32)

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """B items -> (B, width)."""
        assert not adapters
        rows: Floats = self._rows[[int(item.ids.sum()) % len(self._rows) for item in items]]
        return rows

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Not measured."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free."""


def serve(width: int) -> None:
    """The server's process, with the starter's tokenizer."""

    def load(reference: str) -> Embedder:
        starter = Embedder.load(reference)
        starter.close()
        return Embedder(replace(starter.spec, dimensions=(width,)), starter.tokenizer, Instant(width))

    run(ServeSettings(model=(STARTER,), port=0), load)


def words() -> list[str]:
    """The starter's words of one token."""
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(resolve(STARTER)))
    return [piece[1:].decode() for piece in tokenizer.pieces(range(tokenizer.size)) if re.fullmatch(b" [a-z]+", piece)]


def texts(known: Sequence[str], count: int, seed: int) -> list[str]:
    """Texts of 16 tokens: two of the prefix, nine words, and a number, which has one for each digit and its space."""
    draw = np.random.default_rng(seed)
    numbers = draw.integers(1000, 10_000, count)
    return [f"{' '.join(row)} {number}" for row, number in zip(draw.choice(known, (count, 9)), numbers, strict=True)]


def request(texts: Sequence[str], encoding: str) -> bytes:
    """A request's bytes, its head included."""
    body = json.dumps({"model": STARTER, "input": texts, "encoding_format": encoding}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Connection:
    """Sends a request at a time and reads the answers without parsing them."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self._buffer = memoryview(bytearray(1 << 20))

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self._left: int | None = None
        self._end = b""
        self.socket.sendall(request)

    def read(self) -> bool:
        """Take what has come: True if that was an answer's last byte."""
        count = self.socket.recv_into(self._buffer) or sys.exit("the connection was closed")
        if self._left is None:
            self._left = self._length_of(bytes(self._buffer[:count]))
        self._left -= count
        self._end = (self._end + bytes(self._buffer[max(count - 5, 0) : count]))[-5:]
        return not self._left or (self._left < 0 and self._end == b"0\r\n\r\n")

    @staticmethod
    def _length_of(start: bytes) -> int:
        """Bytes of the answer, its head included; 0 for a chunked one, which says at its end that it ends."""
        if not start.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"{start[:500]!r}")
        length = re.search(rb"content-length: (\d+)", start)
        return start.index(b"\r\n\r\n") + 4 + int(length[1]) if length else 0


def ask() -> None:
    """The client's process: for each line `PORT TEXTS ENCODING SECONDS`, a line `ANSWERS SECONDS CPU_SECONDS`."""
    known = words()
    for line in sys.stdin:
        port, size, encoding, seconds = line.split()
        bodies = [request(texts(known, int(size), seed), encoding) for seed in range(BODIES)]
        print(*_asked(int(port), bodies, float(seconds)), flush=True)


def _asked(port: int, bodies: Sequence[bytes], limit_s: float) -> tuple[int, float, float]:
    """Keep the connections busy for a time -> the answers, the seconds until the last of them, and this process's."""
    chosen, requests, answers = selectors.DefaultSelector(), cycle(bodies), 0
    began, own = time.perf_counter(), time.process_time()
    for _ in range(CONNECTIONS):
        one = Connection(port)
        one.ask(next(requests))
        chosen.register(one.socket, selectors.EVENT_READ, one)
    while chosen.get_map():
        for key, _ in chosen.select():
            if not key.data.read():
                continue
            answers += 1
            if time.perf_counter() - began < limit_s:
                key.data.ask(next(requests))
            else:
                chosen.unregister(key.fileobj)
                key.data.socket.close()
    return answers, time.perf_counter() - began, time.process_time() - own


def main(seconds: str = "1.5") -> None:
    """Measure and write `benchmarks/results/server-instant.json`."""
    found = [row for width in WIDTHS for row in measured(width, float(seconds))]
    result = {"texts": f"{TOKENS} tokens", "connections": CONNECTIONS, "rounds": ROUNDS, "rows": found}
    print(measuring.write("server-instant", result).read_text())


def measured(width: int, seconds: float) -> list[dict[str, Any]]:
    """Each encoding and request size with vectors of a width; rounds take turns, after one to warm up."""
    cases = list(product(ENCODINGS, SIZES))
    rounds: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    with process(SERVER, str(width)) as (server, url), client() as asking:
        port = url.rpartition(":")[2]
        for number in range(ROUNDS + 1):
            for encoding, size in cases:
                line = f"{port} {size} {encoding} {seconds if number else seconds / 4}"
                costs = _costs(server.pid, asking, line, size)
                rounds[encoding, size] += [costs] if number else []
    return [
        {"width": width, "encoding": encoding, "texts": size}
        | {name: round(statistics.median(one[name] for one in rows), 3) for name in rows[0]}
        for (encoding, size), rows in rounds.items()
    ]


def _costs(server: int, asking: "subprocess.Popen[str]", line: str, size: int) -> dict[str, float]:
    """One load -> tokens per second, and milliseconds of processor time per 1,000 tokens of the server and client."""
    assert asking.stdin is not None
    assert asking.stdout is not None
    before = process_s(server)
    print(line, file=asking.stdin, flush=True)
    answers, seconds, client_s = map(float, asking.stdout.readline().split())
    own, tokens = process_s(server) - before, answers * size * TOKENS
    return {
        "tokens_per_s": tokens / seconds,
        "server_ms_per_1000": 1e6 * own / tokens,
        "client_ms_per_1000": 1e6 * client_s / tokens,
    }


@contextmanager
def client() -> Iterator["subprocess.Popen[str]"]:
    """The client's process."""
    command = [sys.executable, "-c", CLIENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield started
        assert started.stdin
        started.stdin.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
