"""Random and malformed requests against `nestling serve` with the starter: no server error, no growth of memory.

    python -m benchmarks.server_fuzz [REQUESTS=20000] [LIMIT=0.02]

Half are made by schemathesis from the server's own OpenAPI document, valid and invalid in turns; half are JSON with
likely fields and unlikely values, and bytes that are not JSON (`tests.fuzzing`). Every round sends a tenth of both;
memory is what is resident after the fifth round, when each route has been seen with each status and the engine with
each shape of batch, and after the last. Exit code 1 for a server error or growth beyond LIMIT.
"""

import sys
import time
from collections import Counter

import httpx
from tests.fuzzing import fuzz_bodies, fuzz_document

from benchmarks import measuring
from benchmarks.server_load import NESTLING, process
from benchmarks.soak import MODEL, PATIENCE_S, resident

ROUNDS, WARM = 10, 5


def main(requests: str = "20000", limit: str = "0.02") -> None:
    """Send, write `benchmarks/results/server-fuzz.json`, exit with 1 if something was wrong."""
    statuses: Counter[int] = Counter()
    operations: Counter[str] = Counter()
    sizes, began = list[int](), time.perf_counter()

    def count(status: int) -> None:
        statuses[status] += 1

    with (
        process(NESTLING, "serve", "--model", MODEL, "--token-input", "model", "--port", "0") as (child, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        for number in range(ROUNDS):
            share = int(requests) // (2 * ROUNDS)
            operations += fuzz_document(client, share, count, seed=number)
            fuzz_bodies(client, share, count, seed=number)
            sizes.append(resident(child.pid))
            print(number, sum(statuses.values()), sizes[-1] >> 20, file=sys.stderr, flush=True)
    growth = sizes[-1] / sizes[WARM - 1] - 1
    result = {
        "model": MODEL, "requests": sum(statuses.values()), "statuses": dict(sorted(statuses.items())),
        "operations": dict(operations), "resident_mib": [round(size / 2**20, 1) for size in sizes],
        "growth_after_warm_up": growth, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    print(measuring.write("server-fuzz", result).read_text())
    sys.exit(int(max(statuses) >= 500 or growth > float(limit)))


if __name__ == "__main__":
    main(*sys.argv[1:])
