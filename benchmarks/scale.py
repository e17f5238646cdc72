"""The tables of docs/scale.md: what a hundred million documents cost, from result files and published speeds alone.

python -m benchmarks.scale          (rewrites what stands between the markers in docs/scale.md)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "scale.md"
DOCUMENTS, TOKENS = 100_000_000, 200
L4_TOKENS_PER_S = {"Q8_0": 3767, "Q4_K_M": 3558}
"""Published for this model on one NVIDIA L4 with flash attention, by its makers, in their llama.cpp."""
CORES = 64
BYTES: dict[str, Callable[[int], float]] = {
    "float": lambda d: 4 * d, "float16": lambda d: 2 * d, "int8": lambda d: d, "binary": lambda d: d / 8,
}  # fmt: skip
DIMENSIONS = (2048, 512, 128)
KEPT = ("float", "float16", "int8", "binary", "binary, both sides")
GB, DAY_H = 1e9, 24


def hours() -> str:
    """Machine hours, of one machine, by file type."""
    measured = _read("full-size")
    lines = ["| machine | file type | tokens/s | machine hours | of 100 machines, days |", "|---|---|---|---|---|"]
    for name, speed in _speeds(measured):
        for kind in L4_TOKENS_PER_S:
            total = DOCUMENTS * TOKENS / speed(kind) / 3600
            lines.append(f"| {name} | {kind} | {speed(kind):,.0f} | {total:,.0f} | {total / 100 / DAY_H:,.1f} |")
    return "\n".join(lines) + "\n"


def _speeds(measured: dict[str, Any]) -> list[tuple[str, Callable[[str], float]]]:
    cores = measured["machine"]["cores"]

    def here(kind: str) -> float:
        runs = [one for one in measured["embedding"] if one["engine"] == "openvino" and one["texts"] == "mixed"]
        return float(next(one for one in runs if kind in one["file"])["tokens_per_s_median"])

    instructions = " ".join(measured["machine"]["instructions"])

    def scaled(kind: str) -> float:
        return here(kind) * CORES / int(cores)

    return [
        (f"{cores} cores ({instructions}), measured", here),
        (f"{CORES} cores, as {CORES // cores} times the above", scaled),
        ("one L4, published", L4_TOKENS_PER_S.__getitem__),
    ]


def storage() -> str:
    """Gigabytes of the vectors alone."""
    lines = ["| dimensions | " + " | ".join(BYTES) + " |", "|---" * (len(BYTES) + 1) + "|"]
    for size in DIMENSIONS:
        cells = [f"{DOCUMENTS * width(size) / GB:,.1f}" for width in BYTES.values()]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def recall() -> str:
    """What is kept on each small set: recall@10 and the overlap with the best ten of full float vectors."""
    found = _read("vector-types")["sets"]
    lines = ["| set | dimensions | " + " | ".join(KEPT) + " |", "|---" * (len(KEPT) + 2) + "|"]
    for name, sizes in found.items():
        for size, kinds in sorted(sizes.items(), key=lambda item: -int(item[0])):
            cells = [f"{kinds[kind]['recall_at_10']:.3f} ({kinds[kind]['overlap_at_10']:.2f})" for kind in KEPT]
            lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TABLES = {"hours": hours, "storage": storage, "recall": recall}


def with_tables(text: str) -> str:
    """The document with the tables of today's result files in their places."""
    for name, table in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        assert found, name
        text = before + begin + table() + end + rest.partition(end)[2]
    return text


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text("utf-8")), "utf-8")
