"""Draw `docs/speed.svg`: tokens per second of each side, from the results of `benchmarks.cpu_speed`.

python -m benchmarks.plot_speed
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.cpu_speed import MIXED
from benchmarks.measuring import RESULTS
from nestling.evaluation.figures import Figure, Point, Series
from nestling.evaluation.plots import draw

PICTURE = Path(__file__).parents[1] / "docs" / "speed.svg"
NAMES = {
    "nestling openvino": "nestling",
    "llama.cpp native": "llama.cpp, compiled on the machine",
    "llama.cpp native, extra layouts": "llama.cpp, the same with repacked weights",
    "xllamacpp": "llama.cpp, prebuilt wheel",
}


def figure() -> Figure:
    """A row a side and file type: the full model's width, 4 of its 36 layers, texts of 16 to 512 tokens."""
    found: dict[str, Any] = json.loads((RESULTS / "cpu-speed-avx-512-vnni.json").read_text("utf-8"))
    series: list[Series] = []
    for file in found["files"]:
        speeds = {side["side"]: side["tokens_per_s"][MIXED] for side in file["sides"]}
        start = len(NAMES) * len(series)
        points = [Point(f"{file['quant']}: {NAMES[side]}", speeds[side], start + row) for row, side in enumerate(NAMES)]
        series.append(Series(file["quant"], tuple(points)))
    return Figure(
        "speed", "Speed on two cores, by file type", "tokens per second, texts of 16 to 512 tokens", "", tuple(series),
        rows=True,
    )  # fmt: skip


if __name__ == "__main__":
    PICTURE.write_bytes(draw(figure()))
