"""Tables of the README, from result files alone.

python -m benchmarks.tables          (rewrites what stands between the markers in README.md)
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- table: file types -->\n", "<!-- end -->"
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


def with_table(text: str) -> str:
    """The README with the table of today's result files in its place."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + file_types() + END, text, flags=re.DOTALL)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8")), "utf-8")
