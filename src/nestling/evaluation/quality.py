"""Measure retrieval and similarity: exact search, metrics per query, fidelity to a reference model.

There is one result file per model and benchmark, written as soon as it is measured. An existing file for the same model
bytes, benchmark, settings and version is kept, so that an interrupted run resumes.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nestling._util.files import sha256_file
from nestling._util.progress import Progress, Steps, silent
from nestling._util.version import __version__
from nestling.engine.names import EngineName
from nestling.errors import UsageError
from nestling.evaluation import bm25, data, origins, results
from nestling.evaluation.data import Benchmark, Form, PairSet, RetrievalSet
from nestling.evaluation.encoders import Encoder, Inputs, check_device_used, encode_all, expand, is_url, open_encoder
from nestling.evaluation.results import Against, ModelFacts, QualityResult, Scores
from nestling.evaluation.scoring import Sides, difference, facts_of, lexical, score
from nestling.evaluation.settings import QualitySettings
from nestling.formats.gguf import GGUFFile
from nestling.models import local
from nestling.models.file_spec import spec_of
from nestling.models.towers import tower_of
from nestling.spec import Role, Task
from nestling.vectors import paired_cosine

ALL = "all"
"""The name for all shipped sets."""
_Key = tuple[str | None, Task | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """A result and its file; `fresh` is False if it was kept from an earlier run."""

    result: QualityResult
    path: Path
    fresh: bool


@dataclass(slots=True)
class _Model:
    """A model that is loaded when its vectors are first needed."""

    facts: ModelFacts
    path: Path | None
    settings: QualitySettings
    steps: Steps
    vectors: dict[str, Sides] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tower: str | None = None
    _encoder: Encoder | None = None

    @property
    def task(self) -> Task | None:
        return Task(self.facts.task) if self.facts.task else None

    @property
    def key(self) -> _Key:
        """Family and task; models with equal keys are compared with each other."""
        return self.facts.family, self.task

    @property
    def name(self) -> str:
        """The model's label, and the engine and its device unless both are left to `auto`."""
        runs_on = self.settings.runs_on
        return self.facts.label if runs_on == EngineName.AUTO else f"{self.facts.label}-{runs_on}"

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            reference = str(self.path or self.facts.reference)
            options = self.settings
            self._encoder = open_encoder(
                reference, engine=options.engine, device=options.device, threads=options.threads, task=options.task
            )
        return self._encoder

    def sides(self, benchmark: Benchmark) -> Sides:
        """The benchmark's vectors, computed on first use."""
        if benchmark.name not in self.vectors:
            encoder, began = self.encoder, time.perf_counter()
            told = self.steps(f"{self.facts.label} on {benchmark.name}")
            self.vectors[benchmark.name] = _embed(encoder, benchmark, told)
            self.seconds[benchmark.name] = time.perf_counter() - began
        return self.vectors[benchmark.name]

    def finished(self, *, keep_vectors: bool) -> None:
        """Unload the model, and drop its vectors unless other models are compared with them."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
        if not keep_vectors:
            self.vectors.clear()


def measure(references: Sequence[str], settings: QualitySettings, *, steps: Steps = silent) -> Iterator[Measured]:
    """Measure models on benchmarks, reference models first: yields a `Measured` for each model and benchmark.

    `references` are model references, families (their three tasks), folders of GGUF files, or server URLs. The
    reference model is `against`, or by default the one with the most bits per weight of several models of a family and
    task; it is measured too. Unknown and invalid benchmarks are reported before anything is measured.
    """
    check_device_used(references, settings.device)
    sets: list[Benchmark] = [form for name in _named_sets(settings) for form in data.load(name).forms()]
    models = [_model(reference, settings, steps) for reference in expand(references)]
    against = [settings.against] if settings.against else []
    named = [_model(reference, settings, steps) for reference in expand(against)]
    base_of = _named_bases(named, models) if named else _largest(models)
    ordered = _unique([*base_of.values(), *models])
    _check_names([one.name for one in sets], "benchmark")
    _check_names([model.name for model in ordered], "models")
    try:
        for model in ordered:
            base = base_of.get(model.key)
            for benchmark in sets or [data.load(name) for name in data.for_task(model.task)]:
                yield _measured(model, benchmark, base)
            model.finished(keep_vectors=model is base)
        for task in dict.fromkeys(model.task for model in ordered):
            for one in sets:
                if isinstance(one, RetrievalSet) and one.form is Form.OCR:
                    yield _by_words(one, task, settings)
    finally:
        for model in ordered:
            model.finished(keep_vectors=False)


def _unique(models: Sequence["_Model"]) -> list["_Model"]:
    """Remove duplicates: several references may resolve to the same file."""
    found: dict[str, _Model] = {}
    for model in models:
        found.setdefault(model.facts.sha256 or model.facts.reference, model)
    return list(found.values())


def _check_names(names: Sequence[str], param: str) -> None:
    """UsageError for duplicate names, since results are written under them."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two of them are called {name}, so results would overwrite each other; rename one", param=param
            )


def _named_sets(settings: QualitySettings) -> list[str]:
    names = [name for one in settings.benchmarks for name in (data.SHIPPED if one == ALL else [one])]
    return list(dict.fromkeys(names))


def _model(reference: str, settings: QualitySettings, steps: Steps) -> _Model:
    if is_url(reference):
        with closing(open_encoder(reference, task=settings.task)) as encoder:
            return _Model(ModelFacts(reference, task=encoder.task), None, settings, steps)
    path = local.resolve(reference, steps=steps)
    return _Model(results.model_facts(reference, path), path, settings, steps)


def _named_bases(named: Sequence[_Model], models: Sequence[_Model]) -> dict[_Key, _Model]:
    """The reference model given with `against`, by key; UsageError when a task has none."""
    by_task = {model.task: model for model in named}
    for model in models:
        if model.task not in by_task:
            raise UsageError(
                f"against: {named[0].facts.label}: expected a model for {model.task}, as {model.facts.label} is",
                param="against",
            )
    return {model.key: by_task[model.task] for model in [*named, *models]}


def _largest(models: Sequence[_Model]) -> dict[_Key, _Model]:
    """The model with the most bits per weight, for each family and task with several models."""
    groups: dict[_Key, list[_Model]] = {}
    for model in models:
        groups.setdefault(model.key, []).append(model)
    several = {key: group for key, group in groups.items() if len(group) > 1 and key[0]}
    return {key: max(group, key=lambda model: model.facts.size_bytes or 0) for key, group in several.items()}


def _measured(model: _Model, benchmark: Benchmark, base: _Model | None) -> Measured:
    path = model.settings.out / f"quality-{results.slug(model.name)}-{results.slug(benchmark.name)}.json"
    base = None if base is model else base
    if kept := _kept(path, model, benchmark, base):
        return Measured(kept, path, fresh=False)
    sides = model.sides(benchmark)
    sizes = _sizes(model, sides.queries.shape[1])
    scores = [score(benchmark, sides.at(size), size) for size in sizes]
    result = QualityResult(
        origin=origins.origin(),
        model=model.facts,
        engine=model.settings.runs_on,
        benchmark=facts_of(benchmark),
        query_ids=[] if isinstance(benchmark, PairSet) else list(benchmark.query_ids),
        scores=scores,
        against=_against(base, benchmark, sides, scores[-1]) if base else None,
        encode_s=round(model.seconds[benchmark.name], 3),
        tower_sha256=_tower_of(model, benchmark),
    )
    results.write(path, result)
    return Measured(result, path, fresh=True)


def _by_words(benchmark: RetrievalSet, task: Task | None, settings: QualitySettings) -> Measured:
    path = settings.out / f"quality-{bm25.NAME}-{task}-{results.slug(benchmark.name)}.json"
    result = lexical(benchmark, task)
    results.write(path, result)
    return Measured(result, path, fresh=True)


def _tower_of(model: _Model, benchmark: Benchmark) -> str | None:
    """The SHA-256 of the vision tower that a benchmark's images go through, in this process."""
    if model.path is None or benchmark.form is not Form.IMAGES:
        return None
    if model.tower is None:
        model.tower = sha256_file(tower_of(model.path, spec_of(GGUFFile.open(model.path))))
    return model.tower


def _kept(path: Path, model: _Model, benchmark: Benchmark, base: _Model | None) -> QualityResult | None:
    """The result of an earlier run with the same file, benchmark, settings, reference and version; else None."""
    old = results.read(path) if path.exists() and model.path else None
    if not isinstance(old, QualityResult):
        return None
    same = (old.origin.version, old.model.sha256, old.engine, old.benchmark.sha256, old.tower_sha256) == (
        __version__, model.facts.sha256, model.settings.runs_on, benchmark.sha256, _tower_of(model, benchmark),
    )  # fmt: skip
    same_base = (old.against.model.sha256 if old.against else None) == (base.facts.sha256 if base else None)
    have = {one.dimensions for one in old.scores}
    wanted = set(model.settings.dimensions or model.facts.dimensions)
    return old if same and same_base and have >= wanted else None


def _sizes(model: _Model, width: int) -> list[int]:
    wanted = model.settings.dimensions
    trained = model.facts.dimensions or tuple(sorted({*wanted, width}))
    for size in wanted:
        if size not in trained or size > width:
            known = ", ".join(map(str, trained))
            raise UsageError(f"dimensions={size}: expected one of {known}, for {model.facts.label}", param="dimensions")
    return sorted({*wanted, width}) if wanted else list(trained)


def _embed(encoder: Encoder, benchmark: Benchmark, told: Progress) -> Sides:
    left: Inputs = benchmark.left if isinstance(benchmark, PairSet) else benchmark.queries
    right: Inputs = benchmark.right if isinstance(benchmark, PairSet) else benchmark.pages or benchmark.documents
    roles = Role.QUERY, Role.QUERY if isinstance(benchmark, PairSet) else Role.PASSAGE
    total = len(left) + len(right)
    queries = encode_all(encoder, left, role=roles[0], progress=lambda done, _: told(done, total))
    documents = encode_all(encoder, right, role=roles[1], progress=lambda done, _: told(len(left) + done, total))
    return Sides(queries, documents)


def _against(base: _Model, benchmark: Benchmark, sides: Sides, full: Scores) -> Against:
    theirs = base.sides(benchmark)
    width = sides.queries.shape[1]
    if theirs.queries.shape[1] != width:
        raise UsageError(
            f"{base.facts.label} has {theirs.queries.shape[1]} dimensions: expected {width}, as the model",
            param="against",
        )
    pairs = ((sides.queries, theirs.queries), (sides.documents, theirs.documents))
    cosines = np.concatenate([paired_cosine(ours, other) for ours, other in pairs])
    scores = score(benchmark, theirs.at(width), width)
    differences = {name: difference(full, scores, name) for name in full.means}
    return Against(base.facts, float(cosines.mean()), float(cosines.min()), np.round(cosines, 9).tolist(), differences)
