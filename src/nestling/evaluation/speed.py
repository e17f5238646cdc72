"""Measure speed: tokens per second by text length, latency, load time, peak memory.

Contenders (models in engines, servers) are loaded together, each model in its own process, and take turns: in every
round each runs each bucket once, so that a slowdown of the machine affects all of them. The texts of a round are new
and the same for all. Results are medians over rounds, without the first one, which warms up. Results are written even
if a contender fails.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np

from nestling._util.cpu import usable_threads
from nestling._util.progress import Steps, silent
from nestling.evaluation import origins, results
from nestling.evaluation.encoders import check_device_used, expand, is_url
from nestling.evaluation.origins import Origin
from nestling.evaluation.results import Bucket, Latency, Load, SpeedResult
from nestling.evaluation.settings import SpeedSettings
from nestling.evaluation.targets import Cell, Contender, LocalContender, RemoteContender, Volley
from nestling.evaluation.texts import BucketTexts, TextSource
from nestling.evaluation.worker import Pass
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import local as models
from nestling.spec import Task

IDLE_LOAD = 0.25
"""The highest one-minute load average per processor at which a machine counts as idle."""
Maker = Callable[[], Contender]


@dataclass(slots=True)
class _Samples:
    """The samples of one contender so far."""

    passes: dict[str, list[tuple[BucketTexts, Pass]]] = field(default_factory=dict)
    volleys: dict[Cell, list[Volley]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timed:
    """A result and its file."""

    result: SpeedResult
    path: Path


def measure(references: Sequence[str], settings: SpeedSettings, *, steps: Steps = silent) -> list[Timed]:
    """Measure files (in every engine of the settings) and servers (`URL#MODEL`) in turn; write a result file for each.

    At most `settings.together` are loaded at the same time; more are measured group by group, in the given order.
    """
    check_device_used(references, settings.device)
    source = TextSource(_tokenizer(references, steps))
    makers = _makers(references, settings, steps)
    groups = [makers[start : start + settings.together] for start in range(0, len(makers), settings.together)]
    told = steps("rounds")
    turns = count(1)

    def turned() -> None:
        told(next(turns), len(groups) * (settings.rounds + 1))

    return [one for group in groups for one in _group(group, source, settings, turned=turned)]


def _group(
    makers: Sequence[Maker], source: TextSource, settings: SpeedSettings, *, turned: Callable[[], None]
) -> list[Timed]:
    started, before, rounds = origins.origin(), os.getloadavg()[0], []
    with ExitStack() as stack:
        sides = [(stack.enter_context(closing(make())), _Samples()) for make in makers]
        try:
            for number in range(settings.rounds + 1):
                buckets = source.buckets(settings.pass_tokens, settings.lengths)
                for contender, samples in sides:
                    _round(contender, samples if number else _Samples(), buckets, (source, settings))
                rounds.append(round(os.getloadavg()[0], 2))
                turned()
        finally:
            load = Load(round(before, 2), rounds, idle=before <= IDLE_LOAD * (usable_threads()))
            names = [f"{one.facts.label} ({one.engine})" for one, _ in sides]
            timed = [
                _write(side, (settings, started, load), [name for at, name in enumerate(names) if at != number])
                for number, side in enumerate(sides)
                if side[1].passes
            ]
    return timed


def _tokenizer(references: Sequence[str], steps: Steps) -> Tokenizer:
    """The tokenizer of the first file, for texts that are the same for all; the starter's if there are only servers."""
    local = [one for one in expand(references) if not is_url(one)] or [f"{models.STARTER}-{Task.RETRIEVAL}"]
    return Tokenizer.from_gguf(GGUFFile.open(models.resolve(local[0], steps=steps)))


def _makers(references: Sequence[str], settings: SpeedSettings, steps: Steps) -> list[Maker]:
    """Loaders of the contenders; missing files are reported before anything is measured."""
    cells = tuple(Cell(clients, inputs) for clients in settings.clients for inputs in settings.inputs)
    found: list[Maker] = []
    for reference in expand(references):
        if is_url(reference):
            found.append(partial(RemoteContender, reference, task=settings.task, cells=cells))
            continue
        path = models.resolve(reference, steps=steps)
        facts = results.model_facts(reference, path)
        local = partial(LocalContender, facts, path, threads=settings.threads)
        found += [partial(local, engine=engine, device=settings.device_of(engine)) for engine in settings.engines]
    return found


def _round(
    contender: Contender, samples: _Samples, buckets: Sequence[BucketTexts], way: tuple[TextSource, SpeedSettings]
) -> None:
    source, settings = way
    for bucket in buckets:
        samples.passes.setdefault(bucket.name, []).append((bucket, contender.run(bucket.texts)))
    for cell in contender.cells:
        volley = contender.ask(cell, source, tokens=settings.cell_tokens, seconds=settings.cell_s)
        samples.volleys.setdefault(cell, []).append(volley)


def _write(side: tuple[Contender, _Samples], told: tuple[SpeedSettings, Origin, Load], others: list[str]) -> Timed:
    (contender, samples), (settings, started, load) = side, told
    result = SpeedResult(
        origin=started,
        model=contender.facts,
        engine=contender.engine,
        settings=settings.told(),
        compared_with=others,
        load=load,
        load_time_s=contender.load_time_s,
        peak_memory_bytes=contender.peak_memory_bytes(),
        buckets=[_bucket(done[0][0], [one for _, one in done]) for done in samples.passes.values()],
        latencies=[_latency(cell, found, settings.cell_tokens) for cell, found in samples.volleys.items()],
    )
    path = settings.out / f"speed-{results.slug(contender.facts.label)}-{results.slug(contender.engine)}.json"
    results.write(path, result)
    return Timed(result, path)


def _bucket(bucket: BucketTexts, passes: Sequence[Pass]) -> Bucket:
    return Bucket(
        name=bucket.name,
        tokens=bucket.tokens,
        texts=len(bucket.texts),
        samples_tokens=[one.tokens for one in passes],
        samples_s=[round(one.seconds, 6) for one in passes],
        stages_s={stage: [round(one.stages_s[stage], 6) for one in passes] for stage in passes[0].stages_s},
        tokens_per_s=round(median(one.tokens / one.seconds for one in passes), 2),
    )


def _latency(cell: Cell, volleys: Sequence[Volley], tokens: int) -> Latency:
    samples = [round(one, 3) for volley in volleys for one in volley.samples_ms]
    stages = {
        stage: round(sum(volley.stages_s.get(stage, 0.0) for volley in volleys), 6) for stage in volleys[0].stages_s
    }
    p50, p99 = np.percentile(samples, [50, 99])
    return Latency(
        clients=cell.clients,
        inputs=cell.inputs,
        tokens_per_input=tokens,
        samples_ms=samples,
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        tokens_per_s=round(median(volley.tokens / volley.seconds for volley in volleys), 2),
        stages_s=stages,
    )
