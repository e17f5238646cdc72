"""Which tries hold for a checkpoint, and by how much; the five best can become those of the server's page.

python -m benchmarks.tries CHECKPOINT            (prints a table)
python -m benchmarks.tries CHECKPOINT --write    (and writes src/nestling/server/playground/tries.json)

A try holds if everything that is sought is nearer to the query than everything else; its gap is the least cosine of
the former less the greatest of the latter. Measured as the page does it: through a server, Q8_0, at full size.
"""

import argparse
import base64
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.server_load import NESTLING, process
from benchmarks.tries_candidates import CANDIDATES, Try
from nestling._util.data import data_folder
from nestling.server.pages import TRIES

SHOWN = 5
PICTURED = 2
"""How many of the five have pictures, if so many hold."""
LEAST = 0.05
"""The least gap that is called holding: other processors' arithmetic moves a cosine by a hundredth at most."""
OFTEN = 0.5
"""The least share of a kind's candidates that are right: the best of a kind that is mostly wrong would be luck."""
CLAIMED = 0.8
"""The share of the measured gap that is claimed."""
FAMILY = "candidate"


def gap(url: str, model: str, one: dict[str, Any]) -> float:
    """The least cosine of the query to what is sought less the greatest to anything else."""
    [query] = _embedded(url, model, one["task"], "query", (one["query"],))
    rows = [
        *_embedded(url, model, one["task"], "passage", tuple(one["passages"])),
        *(_picture(url, model, one["task"], file) for file in one["images"]),
    ]
    cosines, sought = np.stack(rows) @ query, list(one["answers"])
    others = np.delete(cosines, sought)
    return float(cosines[sought].min() - others.max())


@functools.cache
def _picture(url: str, model: str, task: str, file: str) -> NDArray[np.float64]:
    code = base64.b64encode((data_folder(".", wanted_for="pictures") / file).read_bytes()).decode()
    return _asked(url, model=model, task=task, prompt_name="raw", input=[{"image": code}])[0]


@functools.cache
def _embedded(url: str, model: str, task: str, role: str, texts: tuple[str, ...]) -> list[NDArray[np.float64]]:
    return _asked(url, model=model, task=task, prompt_name=role, input=list(texts)) if texts else []


def _asked(url: str, **body: object) -> list[NDArray[np.float64]]:
    answer = httpx.post(f"{url}/v1/embeddings", json=body, timeout=300)
    answer.raise_for_status()
    return [np.array(item["embedding"]) for item in answer.json()["data"]]


def chosen(measured: Sequence[tuple[Try, float]]) -> list[dict[str, Any]]:
    """The best try of each kind that holds, five in all, in the candidates' order.

    Two have pictures, if so many hold, not the same: a page if one does, and emoji. A kind is `what: more about it`.
    """
    best: dict[str, tuple[Try, float]] = {}
    for kind, found in by_kind(measured).items():
        used = {picture for one, _ in best.values() for picture in _sought(one)}
        one, most = max((pair for pair in found if not used & _sought(pair[0])), key=lambda pair: pair[1])
        if most >= LEAST and often(found) >= OFTEN:
            best[kind] = (one, most)
    ranked = sorted((pair for pair in best.values() if pair[0].images), key=lambda pair: pair[1])
    firsts = {pair[0].kind.partition(":")[0]: pair for pair in ranked}  # the best of each: later ones replace
    pictured = sorted(ranked, key=lambda pair: (pair not in firsts.values(), -pair[1]))[:PICTURED]
    texts = [pair for pair in best.values() if not pair[0].images]  # kinds in the candidates' order: the first matter
    kept = [*texts[: SHOWN - len(pictured)], *pictured]
    return [_claimed(one, found) for one, found in kept]


def _sought(one: Try) -> set[str]:
    return {one.images[answer - len(one.passages)] for answer in one.answers if answer >= len(one.passages)}


def by_kind(measured: Sequence[tuple[Try, float]]) -> dict[str, list[tuple[Try, float]]]:
    """Kind -> its candidates with their gaps."""
    found: dict[str, list[tuple[Try, float]]] = {}
    for one, one_gap in measured:
        found.setdefault(one.kind, []).append((one, one_gap))
    return found


def often(measured: Sequence[tuple[Try, float]]) -> float:
    """The share of candidates whose right answer is first."""
    return sum(found > 0 for _, found in measured) / len(measured)


def _claimed(one: Try, found: float) -> dict[str, Any]:
    row = asdict(one)
    del row["kind"]
    return {**row, "gap": math.floor(100 * CLAIMED * found) / 100}


def measure(checkpoint: Path) -> list[tuple[Try, float]]:
    """Build a checkpoint's three tasks, serve them, and measure every candidate."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NESTLING_CACHE"] = cache
        build = (sys.executable, "-c", NESTLING, "build", str(checkpoint), "--family", FAMILY, "--quant", "Q8_0")
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        with process(NESTLING, "serve", "--port", "0", "--model", FAMILY) as (_, url):
            return [(one, gap(url, FAMILY, asdict(one))) for one in CANDIDATES]


def main() -> None:
    """Print every candidate with its gap, and which are chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--write", action="store_true", help="make the five best the page's tries")
    given = parser.parse_args()
    measured = measure(given.checkpoint.resolve())
    for one, found in measured:
        print(f"{found:+.3f}  {'holds' if found >= LEAST else '     '}  {one.kind:24}  {one.query}")
    for kind, found_of in by_kind(measured).items():
        print(f"{kind}: the right answer is first in {often(found_of):.0%} of {len(found_of)}")
    rows = chosen(measured)
    print("\nchosen:", *(f"{row['gap']:.2f}  {row['title']}: {row['query']}" for row in rows), sep="\n")
    if given.write:
        TRIES.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
