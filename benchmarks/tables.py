"""Tables of the README and of docs/performance.md, from result files alone.

python -m benchmarks.tables          (rewrites what stands between the markers of each)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cpu_speed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
END = "<!-- end -->"
GIB = 1 << 30


def file_types() -> str:
    """File type, bits and size at full size, the starter's nearness to its F16 vectors and to the original."""
    accuracy, full = (_read(name) for name in ("starter-accuracy", "full-size"))
    sizes = {kind: one["bytes"] for kind, one in full["planned"].items()} | {"F16": full["sizes"]["F16"]["bytes"]}
    bits = {kind: one["bits_per_weight"] for kind, one in full["planned"].items()} | {"F16": 16.0}
    lines = [
        "| type | bits per weight | GiB | mean cosine to F16 | lowest cosine to the original |",
        "|---|---|---|---|---|",
    ]
    for kind in ("F16", *full["planned"]):
        found = accuracy["lowest"][kind]
        row = (
            kind,
            f"{bits[kind]:.2f}",
            f"{sizes[kind] / GIB:.2f}",
            f"{found['mean_to_f16']:.5f}",
            f"{found['original_openvino']:.5f}",
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def speed() -> str:
    """Tokens per second of each side, by file and lengths, and the share of the processor's peak."""
    found = _read("cpu-speed")
    shares = ", ".join(f"{one['quant']} {one['share_of_float32_peak']:.0%}" for one in found["files"])
    peak = found["peak_float32_gflops"]
    return f"{cpu_speed.table(found)}\n\nOf the float32 peak, {peak:.0f} GFLOP/s, the equal lengths take: {shares}.\n"


def loading() -> str:
    """Load time and memory of the full model's file."""
    found = _read("loading")
    kept = found["expanded_bytes"] / GIB
    lines = [
        f"`{found['file']}`, {found['file_bytes'] / GIB:.2f} GiB, at full size ({kept:.2f} GiB expanded):",
        "",
        "| start | load, s | first text, s | resident, GiB |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['start']} ({one['engine']}) | {one['load_s']:.1f} | {one['first_text_s']:.1f} "
        f"| {one['resident_bytes'] / GIB:.2f} |"
        for one in found["starts"]
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"file types": file_types},
    "docs/performance.md": {"cpu speed": speed, "full size": loading},
}


def page(name: str) -> str:
    """A page with the tables of today's result files in their places."""
    text = (ROOT / name).read_text("utf-8")
    for title, table in PAGES[name].items():
        head, _, rest = text.partition(f"<!-- table: {title} -->\n")
        text = f"{head}<!-- table: {title} -->\n{table()}{rest[rest.index(END) :]}"
    return text


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(page(name), "utf-8")
