"""Draw `docs/quantization.svg` and print the tables of `docs/quantization.md` from the benchmark's result.

python -m benchmarks.plot_quantization
"""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measuring import RESULTS
from nestling.evaluation.figures import Figure, Point, Series
from nestling.evaluation.plots import draw

DOCS = Path(__file__).parents[1] / "docs"
LABELLED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XXS", "IQ1_S")


def main() -> None:
    """Draw and print."""
    result = json.loads((RESULTS / "quantization.json").read_text("utf-8"))
    ladder = [_mean_row(kind, result) for kind in dict.fromkeys(row["file_type"] for row in result["ladder"])]
    quantized = [row for row in ladder if row["bits"] < 16]
    mixes: dict[tuple[str, str], list[dict[str, Any]]] = {(row["stock"], row["mix"]): [] for row in result["mixes"]}
    for row in result["mixes"]:
        mixes[row["stock"], row["mix"]].append(row)
    series = [
        Series("stock file types", tuple(_point(row, row["type"] in LABELLED) for row in quantized), joined=False)
    ]
    for kind, name in (("free", "chosen mixes"), ("embedding kept", "chosen mixes, embedding table as in stock")):
        points = [
            Point("", fmean(row["bytes"] for row in rows) / 2**20, _nines(fmean(row["error"] for row in rows)))
            for (_, mix), rows in mixes.items()
            if mix == kind
        ]
        series.append(Series(name, tuple(points), joined=True))
    figure = Figure(
        "quantization", "Quality against size, mean of the starter's three tasks", "MiB", "-log10(1 - cosine to F16)",
        tuple(series),
    )  # fmt: skip
    (DOCS / "quantization.svg").write_bytes(draw(figure))
    _print(ladder, mixes)


def _mean_row(kind: str, result: dict[str, Any]) -> dict[str, Any]:
    rows = [row for row in result["ladder"] if row["file_type"] == kind]
    return {
        "type": kind,
        "bits": fmean(row["bits_per_weight"] for row in rows),
        "mib": fmean(row["size_bytes"] for row in rows) / 2**20,
        "cosine": fmean(row["cosine_mean"] for row in rows),
        "lowest": min(row["cosine_lowest"] for row in rows),
        "llamacpp": min(row["llamacpp_lowest"] for row in rows),
    }


def _point(row: dict[str, Any], labelled: bool) -> Point:  # noqa: FBT001 - two arguments
    return Point(row["type"] if labelled else "", row["mib"], _nines(1 - row["cosine"]))


def _nines(error: float) -> float:
    return -math.log10(max(error, 1e-9))


def _print(ladder: list[dict[str, Any]], mixes: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    print("| file type | bits per weight | MiB | cosine to F16 | lowest | engines agree |\n|---|---|---|---|---|---|")
    for row in ladder:
        print(
            f"| {row['type']} | {row['bits']:.2f} | {row['mib']:.1f} | {row['cosine']:.5f} | {row['lowest']:.4f}"
            f" | {row['llamacpp']:.5f} |"
        )
    print("\n| size of | mix | size to stock | 1 - cosine, stock | mix | ratio by task |\n|---|---|---|---|---|---|")
    for (stock, mix), rows in mixes.items():
        sizes = fmean(row["bytes"] / row["stock_bytes"] for row in rows)
        ratios = ", ".join(f"{row['task']} {row['ratio']:.2f}" for row in rows)
        errors = (fmean(row["stock_error"] for row in rows), fmean(row["error"] for row in rows))
        print(f"| {stock} | {mix} | {sizes:.4f} | {errors[0]:.5f} | {errors[1]:.5f} | {ratios} |")


if __name__ == "__main__":
    main()
