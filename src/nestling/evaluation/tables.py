"""Results to tables, for the terminal and the report. Computes only differences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from nestling.evaluation.data import Form
from nestling.evaluation.metrics import LEVEL, MEASURES, SPEARMAN, Interval
from nestling.evaluation.results import ModelFacts, QualityResult, SpeedResult
from nestling.evaluation.scoring import difference

MIB = 2**20
MOST_IN_PAIRS = 4
"""The most models for which the table of all pairs is shown."""
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of formatted cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())


def quality(results: Sequence[QualityResult]) -> list[Table]:
    """For each benchmark: metrics, comparison with the reference, all pairs of few models, metrics by dimensions."""
    found: list[Table] = []
    for group in by_benchmark(results):
        found.append(_measures(group))
        if any(one.against for one in group):
            found.append(_against(group))
        if 1 < len(group) <= MOST_IN_PAIRS and (len(group) > 2 or not any(one.against for one in group)):  # noqa: PLR2004 - the table above has the difference of two
            found.append(_pairs(group))
        if len(group[0].scores) > 1:
            found.append(_curve(group))
    return found


def by_benchmark(results: Sequence[QualityResult]) -> list[list[QualityResult]]:
    """Results grouped by benchmark and task, largest file first; images and OCR text of pages are one benchmark."""
    groups: dict[tuple[str, str | None], list[QualityResult]] = {}
    for result in sorted(results, key=lambda one: (_largest_first(one), one.benchmark.form != Form.IMAGES)):
        groups.setdefault((result.benchmark.visual or result.benchmark.sha256, result.model.task), []).append(result)
    return sorted(groups.values(), key=lambda group: (group[0].model.task or "", group[0].benchmark.name))


def title(group: Sequence[QualityResult]) -> str:
    """A benchmark, the measured task and family, and the benchmark's size."""
    benchmark = group[0].benchmark
    if benchmark.kind == "pairs":
        return f"{subject(group)} ({benchmark.queries} pairs)"
    return f"{subject(group)} ({benchmark.queries} queries, {benchmark.documents} documents)"


def subject(group: Sequence[QualityResult]) -> str:
    """A benchmark, the measured task and family."""
    foreign = "" if _fits(group[0]) else " (a set for other tasks)"
    families = {one.model.family for one in group if one.model.family}
    of = f", {next(iter(families))}" if len(families) == 1 else ""
    return f"{group[0].benchmark.name}{foreign}{of}, {group[0].model.task}"


def headline(result: QualityResult) -> str:
    """The main metric; for pages that of ViDoRe."""
    return SPEARMAN if result.benchmark.kind == "pairs" else "nDCG@5" if result.benchmark.visual else "nDCG@10"


def labels(group: Sequence[QualityResult | SpeedResult]) -> list[str]:
    """The shortest unambiguous names of a group's models: file types if they differ, else file names."""
    same_family = len({one.model.family for one in group if one.model.family}) <= 1
    short = [((same_family and one.model.file_type) or one.model.label) + _form(one) for one in group]
    if len(set(short)) == len(group):
        return short
    named = [one.model.label + _form(one) for one in group]
    if len(set(named)) == len(group):
        return named
    return [f"{name} ({one.engine})" for name, one in zip(short, group, strict=True)]


def _form(result: QualityResult | SpeedResult) -> str:
    """`, images` or `, OCR text` for a benchmark of pages, else empty."""
    form = result.benchmark.form if isinstance(result, QualityResult) else ""
    return f", {form}" if form else ""


def _measures(group: Sequence[QualityResult]) -> Table:
    main = headline(group[0])
    names = [SPEARMAN] if main == SPEARMAN else list(MEASURES)
    columns = ["model", "MiB", "bits/weight", *(f"{name} [{LEVEL:.0%}]" if name == main else name for name in names)]
    rows = [
        _size_cells(label, one.model) + [_measure(one, name, main) for name in names]
        for label, one in zip(labels(group), group, strict=True)
    ]
    note = f"In brackets the {LEVEL:.0%} bootstrap interval; compare models by the paired differences below."
    return Table(f"{subject(group)}: measures", columns, rows, [note])


def _measure(result: QualityResult, name: str, main: str) -> str:
    value = result.full.means[name]
    return f"{value.mean:.4f} [{value.low:.3f}, {value.high:.3f}]" if name == main else f"{value.mean:.4f}"


def _against(group: Sequence[QualityResult]) -> Table:
    main = headline(group[0])
    rows = []
    for label, one in zip(labels(group), group, strict=True):
        if one.against is None:
            continue
        gap = one.against.differences[main]
        near = [f"{one.against.cosine_mean:.6f}", f"{one.against.cosine_lowest:.6f}"]
        rows.append([label, one.against.model.file_type or one.against.model.label, _signed(gap), verdict(gap), *near])
    columns = ["model", "reference", f"difference in {main} [{LEVEL:.0%}]", "verdict", "cosine", "lowest"]
    note = "Differences are paired by query; cosines are those of every vector to the reference's."
    return Table(f"{subject(group)}: compared with the reference", columns, rows, [note])


def verdict(gap: Interval) -> str:
    """The conclusion from the interval of a difference."""
    if gap.low == gap.high == 0:
        return "equal"
    if gap.high < 0:
        return "worse"
    return "better" if gap.low > 0 else "not significant"


def _signed(gap: Interval) -> str:
    return f"{gap.mean:+.4f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def _pairs(group: Sequence[QualityResult]) -> Table:
    main = headline(group[0])
    rows = []
    for (left, above), (right, below) in combinations(zip(labels(group), group, strict=True), 2):
        gap = difference(below.full, above.full, main)
        rows.append([right, left, _signed(gap), verdict(gap)])
    columns = ["model", "than", f"difference in {main} [{LEVEL:.0%}]", "verdict"]
    return Table(f"{subject(group)}: every pair", columns, rows)


def _curve(group: Sequence[QualityResult]) -> Table:
    main = headline(group[0])
    sizes = sorted({scores.dimensions for one in group for scores in one.scores if scores.dimensions})
    rows = []
    for label, one in zip(labels(group), group, strict=True):
        if not one.full.dimensions:
            continue
        by_size = {scores.dimensions: f"{scores.means[main].mean:.4f}" for scores in one.scores}
        rows.append([label, *(by_size.get(size, NOTHING) for size in sizes)])
    return Table(f"{subject(group)}: {main} by dimensions", ["model", *map(str, sizes)], rows)


def published(results: Sequence[QualityResult], measure: str = "nDCG@5") -> list[Table]:
    """One table per task, as in the published model card: a row per file, a column per set for that task."""
    fitting = [one for one in results if measure in one.full.means and _fits(one)]
    found: list[Table] = []
    for task in sorted({one.model.task or "" for one in fitting}):
        group = sorted((one for one in fitting if (one.model.task or "") == task), key=_largest_first)
        sets = sorted({one.benchmark.name for one in group})
        models = {_identity(one): one.model for one in group}
        cells = {(_identity(one), one.benchmark.name): f"{one.full.means[measure].mean:.4f}" for one in group}
        rows = [
            _size_cells(key[0], facts) + [cells.get((key, name), NOTHING) for name in sets]
            for key, facts in models.items()
        ]
        found.append(Table(f"{measure}, {task}", ["model", "MiB", "bits/weight", *sets], rows))
    return found


def _largest_first(result: QualityResult | SpeedResult) -> int:
    return -(result.model.size_bytes or 0)


def _fits(result: QualityResult) -> bool:
    return not result.benchmark.tasks or result.model.task in result.benchmark.tasks


def _identity(result: QualityResult) -> tuple[str, str, str]:
    return result.model.label, result.model.sha256 or "", result.engine


def _size_cells(label: str, model: ModelFacts) -> list[str]:
    return [label, _mib(model.size_bytes), f"{model.bits_per_weight:.2f}" if model.bits_per_weight else NOTHING]


def _mib(size_bytes: int | None) -> str:
    return f"{size_bytes / MIB:.1f}" if size_bytes else NOTHING


def speed(results: Sequence[SpeedResult]) -> list[Table]:
    """Tokens per second by text length, with memory and load time; stages for mixed lengths; latencies."""
    ordered = sorted(results, key=_largest_first)
    return [table for make in (_rates, _stages, _latencies) if (table := make(ordered)).rows]


def _rates(results: Sequence[SpeedResult]) -> Table:
    names = list(dict.fromkeys(bucket.name for one in results for bucket in one.buckets))
    headings = [f"{name} tokens" if name.isdigit() else name for name in names]
    rows = []
    for one in results:
        rates = {bucket.name: f"{bucket.tokens_per_s:.0f}" for bucket in one.buckets}
        load = f"{one.load_time_s:.2f}" if one.load_time_s is not None else NOTHING
        memory = [_mib(one.peak_memory_bytes), load]
        rows.append(
            [
                *_size_cells(one.model.label, one.model),
                one.engine,
                *memory,
                *(rates.get(name, NOTHING) for name in names),
            ]
        )
    columns = ["model", "MiB", "bits/weight", "engine", "peak memory, MiB", "load, s", *headings]
    return Table("Tokens per second by text length", columns, rows, ["Medians over rounds; the models took turns."])


def _stages(results: Sequence[SpeedResult]) -> Table:
    rows = []
    for one in results:
        for bucket in (bucket for bucket in one.buckets if bucket.stages_s):
            spent = {stage: sum(samples) for stage, samples in bucket.stages_s.items()}
            shares = [f"{100 * seconds / sum(spent.values()):.1f}" for seconds in spent.values()]
            rows.append([one.model.label, one.engine, bucket.name, *shares])
    return Table("Time by stage, % of a pass", ["model", "engine", "tokens", "tokenize", "forward", "serialize"], rows)


def _latencies(results: Sequence[SpeedResult]) -> Table:
    stages = sorted({stage for one in results for cell in one.latencies for stage in cell.stages_s})
    rows = []
    for one in results:
        for cell in one.latencies:
            who = [
                one.model.label,
                one.engine,
                str(cell.clients or "in process"),
                str(cell.inputs),
                str(cell.tokens_per_input),
            ]
            spent = [
                f"{1000 * cell.stages_s[name] / len(cell.samples_ms):.1f}" if name in cell.stages_s else NOTHING
                for name in stages
            ]
            rows.append(
                [
                    *who,
                    f"{cell.p50_ms:.1f}",
                    f"{cell.p99_ms:.1f}",
                    f"{cell.tokens_per_s:.0f}",
                    str(len(cell.samples_ms)),
                    *spent,
                ]
            )
    columns = [
        "model",
        "engine",
        "clients",
        "texts per request",
        "tokens per text",
        "p50, ms",
        "p99, ms",
        "tokens/s",
        "requests",
    ]
    return Table("Latency", [*columns, *(f"{name}, ms" for name in stages)], rows)


def load_warning(results: Sequence[SpeedResult]) -> str | None:
    """A warning if the machine was not idle before measuring; else None."""
    busy = [one for one in results if not one.load.idle]
    if not busy:
        return None
    worst = max(busy, key=lambda one: one.load.before)
    return (
        f"the machine was not idle: load {worst.load.before} on {worst.origin.machine.processors} processors before"
        " the first sample; these speeds are unreliable"
    )
