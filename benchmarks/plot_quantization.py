"""Draw `docs/quantization.svg` and write the figures into `docs/quantization.md`, from result files.

    python -m benchmarks.plot_quantization

Mixes are those of `benchmarks.quantization`; stock file types are those of `nestling eval quality` in `results/starter`
and of `benchmarks.agreement`.
"""

import json
import math
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.agreement import LADDER
from benchmarks.judging import COMPARISONS
from benchmarks.measuring import RESULTS
from nestling.evaluation import results
from nestling.evaluation.figures import Figure, Point, Series
from nestling.evaluation.plots import draw
from nestling.evaluation.results import QualityResult

DOCS = Path(__file__).parents[1] / "docs"
LABELLED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XXS", "IQ1_S")

Mixes = dict[tuple[str, str], list[dict[str, Any]]]
"""Stock file type and kind of mix -> a row a task."""


def main() -> None:
    """Draw and write."""
    result = json.loads((RESULTS / "quantization.json").read_text("utf-8"))
    ladder = _ladder_rows()
    quantized = [row for row in ladder if row["bits"] < 16]
    mixes: Mixes = {(row["stock"], row["mix"]): [] for row in result["mixes"]}
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
    _fill(
        {
            "ladder": _ladder(ladder),
            "correlation": _correlation(result),
            "mixes": _mixes(mixes),
            "gains": _gains(result),
        }
    )


def _ladder_rows() -> list[dict[str, Any]]:
    """A row a file type, over the tasks on their own sets: size, nearness to F16 and between the engines."""
    every = results.read_all([RESULTS / "starter"])
    own = [one for one in every if isinstance(one, QualityResult) and one.model.task in one.benchmark.tasks]
    files = json.loads((RESULTS / "agreement.json").read_text("utf-8"))["files"]
    engines = {kind: [row for row in files if row["file_type"] == kind] for kind in LADDER}
    return [_row([one for one in own if one.model.file_type == kind], engines[kind]) for kind in LADDER]


def _row(measured: list[QualityResult], engines: list[dict[str, Any]]) -> dict[str, Any]:
    cosines = [cosine for one in measured if one.against for cosine in one.against.cosines]
    return {
        "type": engines[0]["file_type"],
        "bits": fmean(one.model.bits_per_weight or 0 for one in measured),
        "mib": fmean(one.model.size_bytes or 0 for one in measured) / 2**20,
        "cosine": fmean(cosines or [1.0]),  # none: this is what others are compared with
        "lowest": min(cosines or [1.0]),
        "llamacpp": min(row["openvino_llamacpp"]["lowest"] for row in engines),
    }


def _point(row: dict[str, Any], labelled: bool) -> Point:  # noqa: FBT001 - two arguments
    return Point(row["type"] if labelled else "", row["mib"], _nines(1 - row["cosine"]))


def _nines(error: float) -> float:
    return -math.log10(max(error, 1e-9))


def _ladder(ladder: list[dict[str, Any]]) -> str:
    head = "| file type | bits per weight | MiB | cosine to F16 | lowest | engines agree |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {row['type']} | {row['bits']:.2f} | {row['mib']:.1f} | {row['cosine']:.5f} | {row['lowest']:.4f}"
        f" | {row['llamacpp']:.5f} |"
        for row in ladder
    )


def _mixes(mixes: Mixes) -> str:
    head = "| size of | mix | size to stock | 1 - cosine, stock | mix | ratio by task |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(_mix_row(stock, mix, rows) for (stock, mix), rows in mixes.items())


def _mix_row(stock: str, mix: str, rows: list[dict[str, Any]]) -> str:
    sizes = fmean(row["bytes"] / row["stock_bytes"] for row in rows)
    ratios = ", ".join(f"{row['task']} {row['ratio']:.2f}" for row in rows)
    errors = (fmean(row["stock_error"] for row in rows), fmean(row["error"] for row in rows))
    return f"| {stock} | {mix} | {sizes:.4f} | {errors[0]:.5f} | {errors[1]:.5f} | {ratios} |"


def _gains(result: dict[str, Any]) -> str:
    single, together = (result["summary"][key] for key in ("nDCG@10", "nDCG@10, all mixes together"))
    counted = "; ".join(f"{kind}, {_counted(single[kind])}" for kind in COMPARISONS)
    left, left_together = (
        "; ".join(f"{kind}, {_left(found[kind])}" for kind in COMPARISONS) for found in (single, together)
    )
    mixes = len(result["mixes"]) // len(result["tasks"])
    return (
        f"significant by their 95 % intervals are, {counted}.\nCorrected for their number (permutation tests, Holm)"
        f" there remain: {left}; with the {mixes} mixes of a task taken together: {left_together}."
    )


def _left(ranking: dict[str, Any]) -> str:
    names = " and ".join(", ".join(name for name in of if name != "all") for of in ranking["left_after_correction"])
    return f"{names or 'none'} (lowest p {ranking['lowest_corrected_p']:.2f})"


def _counted(ranking: dict[str, Any]) -> str:
    higher, lower = len(ranking["higher"]), len(ranking["lower"])
    return f"{higher} of {ranking['comparisons']} higher and {lower} lower (mean {ranking['mean']:+.4f})"


def _correlation(result: dict[str, Any]) -> str:
    rates = [facts["estimate_correlation"] for facts in result["tasks"].values()]
    count = sum(facts["estimates_checked"] for facts in result["tasks"].values())
    return (
        f"Against {count} single changes that were really measured, the estimates' logarithms correlate with at least"
        f" {min(rates):.3f}."
    )


def _fill(parts: dict[str, str]) -> None:
    """Put each part between its two marks in the page."""
    page = DOCS / "quantization.md"
    text = page.read_text("utf-8")
    for name, part in parts.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        wrapped = "\n".join(row if row.startswith("|") else textwrap.fill(row, 120) for row in part.splitlines())
        before, _, rest = text.partition(first)
        text = f"{before}{first}\n{wrapped}\n{last}{rest.partition(last)[2]}"
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
