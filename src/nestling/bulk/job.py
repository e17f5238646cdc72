"""The library call: plan a job or resume it, run the remaining shards, finish it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from nestling._util.cpu import usable_threads
from nestling._util.extras import need
from nestling.bulk import local, manifest, model_files, plan, sources
from nestling.bulk.embedding import Ticked
from nestling.bulk.manifest import Finished, Job, Log, Model
from nestling.bulk.plan import Shard
from nestling.bulk.settings import (
    INDEX_ROWS,
    JobSpec,
    Outcome,
    ProgressCallback,
    Runner,
    RunOptions,
    Sink,
    Status,
    VectorType,
    no_progress,
)
from nestling.bulk.sources import Found
from nestling.bulk.worker import Setup
from nestling.engine.names import EngineName, check_device, kind_of
from nestling.errors import BuildError, UsageError


def run(
    source: Sequence[str],
    out: Path,
    what: JobSpec,
    how: RunOptions | None = None,
    *,
    progress: ProgressCallback = no_progress,
) -> Outcome:
    """Embed every row of `source` (files, folders, patterns) into the folder `out`, resuming an interrupted run.

    A setting that cannot be honoured is a UsageError; another job in `out`, a changed source and too many rejects are
    a BuildError; a file that cannot be read is a FileFormatError. `progress` is called after every batch.
    """
    how, began = how or RunOptions(), time.monotonic()
    _check_index(what, how)
    _check_devices(what, how)
    found = sources.find(source)
    files = sources.apart(found.files, out)
    what = plan.settled(what, files)
    model = model_files.facts(what, images=plan.has_images(what, files))
    with manifest.held(out):
        job = _job(out, files, what, (model, how))
        (out / manifest.SHARDS).mkdir(exist_ok=True)
        shards = job.plan.shards()
        with closing(Log(job)) as log:
            log.adopt(shards)
            left = [shard for shard in shards if shard.name not in log.finished]
            meter = Meter(job.plan.rows, log.rows + log.rejected, progress)
            _embed(job, log, left, (_setup(job, files, how), how, meter))
        _finish(job, log, how)
    own = sources.BESIDE_TABLES if what.image_column else ""  # image files that the column refers to
    skipped = (*(reason for _, reason in job.plan.skipped), *found.said(but=own))
    seconds = time.monotonic() - began
    return Outcome(out, log.rows, log.rejected, len(shards), len(left), meter.tokens, seconds, skipped)


def _embed(job: Job, log: Log, left: Sequence[Shard], way: tuple[Setup, RunOptions, "Meter"]) -> None:
    setup, how, meter = way
    _check_rejects(job, log, how)
    for one in _runner(setup, left, how, meter.tick) if left else ():
        log.add(one)
        _check_rejects(job, log, how)


class Meter:
    """Adds up what is done and reports it."""

    def __init__(self, total: int, before: int, progress: ProgressCallback) -> None:
        self._total, self._before, self._progress = total, before, progress
        self._rows, self.tokens, self._began = 0, 0, time.monotonic()
        self.tick(0, 0)

    def tick(self, rows: int, tokens: int) -> None:
        """Add finished rows and tokens."""
        self._rows, self.tokens = self._rows + rows, self.tokens + tokens
        seconds = time.monotonic() - self._began
        self._progress(Status(self._before + self._rows, self._total, self._rows, self.tokens, seconds))


def _check_index(what: JobSpec, how: RunOptions, rows: int = INDEX_ROWS) -> None:
    """Refuse, before the job, an index that LanceDB would refuse after it."""
    if how.index and what.embedding_type == VectorType.INT8:
        raise UsageError(
            "index: expected vectors of type float, float16 or binary; LanceDB builds none for int8", param="index"
        )
    if how.index and rows < INDEX_ROWS:
        raise UsageError(f"index: LanceDB needs at least {INDEX_ROWS} rows to build one, found {rows}", param="index")


def _check_devices(what: JobSpec, how: RunOptions) -> None:
    check_device(EngineName.parse(what.backend), how.device)
    for one in how.devices:
        if one is not None and kind_of(one) != (what.device or "cpu"):
            raise UsageError(f"device={how.device!r}: the job's is {what.device or 'cpu'}", param="device")


def _job(out: Path, files: Sequence[Found], what: JobSpec, context: tuple[Model, RunOptions]) -> Job:
    """The folder's job, if it is the same one; a new job in an empty folder."""
    model, how = context
    if not (out / manifest.JOB).exists():
        manifest.check_free(out)
        made = plan.make(files, what, folder=out, skip_bad_files=how.skip_bad_files)
        _check_index(what, how, made.rows)
        return Job.create(out, what, model, made)
    job = Job.read(out)
    manifest.check_same(job, what, model)
    _check_source(job, _taken(job, files))
    return job


def _taken(job: Job, files: Sequence[Found]) -> list[Found]:
    """The files that the plan did not skip."""
    skipped = {name for name, _ in job.plan.skipped}
    return [file for file in files if file.name not in skipped]


def _check_source(job: Job, files: Sequence[Found]) -> None:
    old = {file.name: file for file in job.plan.files}
    for file in files:
        if file.name not in old:
            raise BuildError(f"{job.folder}: {file.name} is not in the source of this job; give another folder")
        if old[file.name].size != file.size or old[file.name].fingerprint != file.fingerprint():
            changed = f"{file.name} has" if file.url else "the image files of its source have"
            raise BuildError(f"{job.folder}: {changed} changed since this job began; give another folder")
    if missing := old.keys() - {file.name for file in files}:
        raise BuildError(f"{job.folder}: {min(missing)}, a file of this job's source, is missing")


def _setup(job: Job, files: Sequence[Found], how: RunOptions) -> Setup:
    threads, files = how.threads or max(1, usable_threads() // how.worker_count), _taken(job, files)
    device = how.devices[0] or job.what.device
    return Setup(job.folder.resolve(), tuple(files), job.what.model, threads, how.skip_bad_files, device)


def _runner(setup: Setup, left: Sequence[Shard], how: RunOptions, ticked: Ticked) -> Iterator[Finished]:
    if how.runner is Runner.LOCAL:
        devices = how.devices if len(how.devices) > 1 else (setup.device,) * how.worker_count
        return local.run(setup, left, devices=devices, ticked=ticked)
    ray = need("nestling.bulk.ray", wanted_for="engine=ray", extra="ray")
    found: Iterator[Finished] = ray.run(setup, left, workers=how.worker_count, address=how.ray_address, ticked=ticked)
    return found


def _check_rejects(job: Job, log: Log, how: RunOptions) -> None:
    if how.max_rejects is not None and log.rejected > how.max_rejects:
        manifest.write_rejects(job, log.finished)
        raise BuildError(
            f"{log.rejected} rows are rejected, max_rejects={how.max_rejects}; {job.folder / manifest.REJECTS} says why"
        )


def _finish(job: Job, log: Log, how: RunOptions) -> None:
    log.settle()
    manifest.write_rejects(job, log.finished)
    if how.sink is Sink.LANCE:
        table = need("nestling.bulk.lance", wanted_for="sink=lance", extra="lance")
        table.make(job, index=how.index)
