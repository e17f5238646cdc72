"""The tables of docs/scale.md and docs/bulk.md, from result files and published speeds alone.

python -m benchmarks.scale          (rewrites the text between the markers of each page)
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cpu_speed import MIXED

ROOT = Path(__file__).parents[1]
PAGES = ("docs/scale.md", "docs/bulk.md")
DOCUMENTS, TOKENS = 100_000_000, 200
L4_TOKENS_PER_S = {"Q8_0": 3767, "Q4_K_M": 3558}
"""Published for this model on one NVIDIA L4 with flash attention, by its makers, in their llama.cpp."""
CORES = 64
MEASURED_LAYERS, LAYERS = 4, 36
BYTES: dict[str, Callable[[int], float]] = {
    "float": lambda d: 4 * d, "float16": lambda d: 2 * d, "int8": lambda d: d, "binary": lambda d: d / 8,
}  # fmt: skip
DIMENSIONS = (2048, 512, 128)
KEPT = ("float", "float16", "int8", "binary", "binary, both sides")
GB, MIB, DAY_H = 1e9, 1 << 20, 24


def hours() -> str:
    """Machine hours, of one machine, by file type."""
    lines = ["| machine | file type | tokens/s | machine hours | of 100 machines, days |", "|---|---|---|---|---|"]
    for name, speed in _speeds():
        for kind in L4_TOKENS_PER_S:
            total = DOCUMENTS * TOKENS / speed(kind) / 3600
            lines.append(f"| {name} | {kind} | {speed(kind):,.0f} | {total:,.0f} | {total / 100 / DAY_H:,.1f} |")
    return "\n".join(lines) + "\n"


def _speeds() -> list[tuple[str, Callable[[str], float]]]:
    whole, part = _read("full-size"), _read("cpu-speed-avx-512-vnni")
    cores = int(part["machine"]["cores"])

    def plain(kind: str) -> float:
        runs = [one for one in whole["embedding"] if one["engine"] == "openvino" and one["texts"] == "mixed"]
        return float(next(one for one in runs if kind in one["file"])["tokens_per_s_median"])

    def vnni(kind: str) -> float:
        file = next(one for one in part["files"] if one["quant"] == kind)
        return float(file["sides"][0]["tokens_per_s"][MIXED]) * MEASURED_LAYERS / LAYERS

    return [
        (f"{whole['machine']['cores']} cores, AVX2, measured", plain),
        (f"{cores} cores, AVX-512 VNNI, measured with {MEASURED_LAYERS} of {LAYERS} layers", vnni),
        (f"{CORES} cores, estimate: {CORES // cores} times the above", lambda kind: vnni(kind) * CORES / cores),
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


def measured() -> str:
    """What a job does on the machine of the result file, part by part."""
    parts = _read("bulk")["parts"]
    rows = [row for name, told in TOLD.items() if name in parts for row in told(parts[name])]
    kills = {name.removeprefix("kills-"): one for name, one in parts.items() if name.startswith("kills-")}
    rows += [(f"`kill -9`: {name}", f"{one['equal']} of {one['kills']} reruns equal") for name, one in kills.items()]
    return "\n".join(["| part | measured |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]) + "\n"


Row = tuple[str, str]


def _speed(part: dict[str, Any]) -> list[Row]:
    rates, over = part["tokens_per_s"], part["over_engine"]
    told = [f"{name} {rates[name]:,.0f} tokens/s ({share:.1%})" for name, share in over.items()]
    what = f"{part['documents']:,} documents, {part['tokens']:,} tokens, in {min(part['seconds']['job']):.0f} s"
    return [(what, f"engine alone {rates['engine with tokenizer']:,.0f} tokens/s, {', '.join(told)}")]


def _ray(part: dict[str, Any]) -> list[Row]:
    rates = [f"{one['tokens_per_s']:,.0f}" for one in part["ways"].values()]
    shares = f"{part['ray_over_local_two_threads']:.1%} and {part['ray_over_local_two_workers']:.1%}"
    names = "two workers of one thread on Ray, compared with one of two threads and two of one here"
    return [(names, f"{rates[2]} tokens/s, {rates[0]} and {rates[1]}: {shares}")]


def _memory(part: dict[str, Any]) -> list[Row]:
    return [
        (f"peak memory when {int(mark):,} rows are done", f"{sizes['VmHWM'] / MIB:,.0f} MiB")
        for mark, sizes in part["bytes_when_rows_done"].items()
    ]


def _large(part: dict[str, Any]) -> list[Row]:
    told = f"planned in {part['planned_s']:.0f} s; {part['rows_done']:,} rows done, peak memory"
    return [(f"a Parquet file of {part['rows']:,} rows", f"{told} {part['peak_resident_bytes'] / MIB:,.0f} MiB")]


def _planning(part: dict[str, Any]) -> list[Row]:
    return [
        (
            f"{int(count):,} shards",
            f"planned in {one['planned_s']:.1f} s, manifest read in {one['manifest_read_s']:.1f} s",
        )
        for count, one in part["shards"].items()
    ]


def _same(part: dict[str, Any]) -> list[Row]:
    ways = part["same_bytes"]
    return [
        ("files equal to one worker's", f"{sum(ways.values())} of {len(ways)}: {', '.join(f'`{w}`' for w in ways)}")
    ]


TOLD: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "speed": _speed, "ray": _ray, "memory": _memory, "large": _large, "planning": _planning, "same": _same,
}  # fmt: skip
TABLES = {"hours": hours, "storage": storage, "recall": recall, "measured": measured}
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The document with the tables of today's result files in their places."""
    return _PLACE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(with_tables((ROOT / page).read_text("utf-8")), "utf-8")
