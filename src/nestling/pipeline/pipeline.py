"""Build a folder of files from a checkpoint: every task in every file type, multi-vector heads, each with a card.

A rerun resumes: a file is kept if its card matches the checkpoint and its bytes match the card. The F16 file is always
built, since every quantized file is made from it and compared with it. File types that an importance matrix improves
use one, which is collected once per task by a callable that the caller passes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from nestling._util.files import lock, sha256_file
from nestling._util.progress import Steps, TotalProgress, silent
from nestling._util.version import __version__
from nestling.errors import FileFormatError
from nestling.formats.card import Card, write_sums
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import STEM as TOWER_STEM
from nestling.formats.mmproj import tower_path
from nestling.formats.multivector_head import projector_path
from nestling.formats.quant_types import FLOAT_FILE_TYPES
from nestling.pipeline.conversion.adapters import KIND as ADAPTER_KIND
from nestling.pipeline.conversion.adapters import write_adapter
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.conversion.convert import convert
from nestling.pipeline.conversion.merge import text_tensors
from nestling.pipeline.conversion.multivector import KIND, write_projector
from nestling.pipeline.conversion.vision import KIND as TOWER_KIND
from nestling.pipeline.conversion.vision import write_tower
from nestling.pipeline.conversion.vision_config import has_tower, tower_shape
from nestling.pipeline.eta import CONVERT, OBSERVE_A_TOKEN, file_effort, weights
from nestling.pipeline.quantization.kept_imatrix import WITHOUT, CollectMatrix, MadeMatrix, keep, kept, matrix_path
from nestling.pipeline.quantization.plan import Mix
from nestling.pipeline.quantization.quantize import quantize_many
from nestling.spec import BASE_STEM, Task, adapter_path, checked_family, stem_of

BASE = "F16"
TOGETHER = 4
"""How many files are quantized in one pass over the source: more would save little reading and lose more if killed."""


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """One file of a build; `fresh` is False for a file kept from an earlier run."""

    path: Path
    card: Card
    fresh: bool


def model_path(folder: Path, *, family: str, task: Task | None, file_type: str) -> Path:
    """The published name of a file: `{family}-text-{task}-{QUANT}.gguf`, with `base` for no task."""
    return folder / f"{checked_family(family)}-text-{stem_of(task)}-{file_type}.gguf"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Builds files of one checkpoint into one folder under one family name.

    `total` is the progress over all steps. `prove` computes the self-test vectors that a task model's card keeps
    (`Card.proof`).
    """

    checkpoint: Checkpoint
    folder: Path
    family: str
    threads: int
    steps: Steps = silent
    collect: CollectMatrix | None = None
    total: TotalProgress = field(default_factory=TotalProgress)
    prove: Callable[[Path], dict[str, str]] | None = None

    def build(self, tasks: Sequence[Task], file_types: Sequence[str]) -> list[BuiltFile]:
        """Build every file type of every task, F16 first.

        Without `collect` the files are quantized without an importance matrix. CheckpointError for an invalid
        checkpoint, BuildError for a file that cannot be made or written.
        """
        self.total.expect(dict(self._efforts(tasks, file_types)))
        with lock(self.folder / ".lock", what=str(self.folder)):
            self._tower_if_any()
            built = [file for task in tasks for file in self._task(task, list(dict.fromkeys((BASE, *file_types))))]
            write_sums(self.folder)
        return built

    def build_base(self, file_types: Sequence[str]) -> list[BuiltFile]:
        """Build the base (no adapter merged) in every file type, and the LoRA adapter of every task; errors as `build`.

        The base's importance matrix is collected over all three tasks, each with its own adapter.
        """
        self.total.expect(dict(self._efforts([None], file_types)))
        with lock(self.folder / ".lock", what=str(self.folder)):
            self._tower_if_any()
            adapters = [self._adapter(task) for task in Task]
            built = self._task(None, list(dict.fromkeys((BASE, *file_types))))
            write_sums(self.folder)
        return [*built, *adapters]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of every model file: name -> shape."""
        return {tensor.name: tensor.shape for tensor in text_tensors(self.checkpoint.config)}

    def _efforts(self, tasks: Sequence[Task | None], file_types: Sequence[str]) -> Iterator[tuple[str, float]]:
        """(name, estimated seconds) of every file."""
        config, shapes = self.checkpoint.config, self.shapes
        for file_type in {BASE, *file_types}:
            heads, kv_heads = config.heads, config.kv_heads
            effort = file_effort(shapes, file_type, heads=heads, kv_heads=kv_heads, threads=self.threads)
            yield from ((self._path(task, file_type).name, effort) for task in tasks)
        if self.collect and set(file_types).difference(WITHOUT):
            effort = OBSERVE_A_TOKEN * self.collect.tokens * weights(shapes) / self.threads
            yield from ((matrix_path(self.folder, task).name, effort) for task in tasks)
        if has_tower(self.checkpoint):
            name = tower_path(self.folder, self.family).name
            yield name, CONVERT * weights(tower_shape(self.checkpoint).tensors())

    def tower(self, out: Path | None = None) -> BuiltFile:
        """Build only the vision tower, one for all tasks, under its published name or as `out`; errors as `build`."""
        if out:
            return self._tower(out)
        with lock(self.folder / ".lock", what=str(self.folder)):
            built = self._tower(tower_path(self.folder, self.family))
            write_sums(self.folder)
        return built

    def _tower_if_any(self) -> None:
        if has_tower(self.checkpoint):
            self._tower(tower_path(self.folder, self.family))

    def _tower(self, path: Path) -> BuiltFile:
        if (card := self._kept(path, made_from="", imatrix="")) and card.family == self.family:
            self.total.skip(path.name)
            return BuiltFile(path, card, fresh=False)
        progress = self.total.part(path.name, progress=self.steps(path.name))
        sha256 = write_tower(self.checkpoint, out=path, family=self.family, progress=progress)
        return self._finished(replace(self._card(path, None, TOWER_KIND.name, sha256), task=TOWER_STEM))

    def projectors(self, tasks: Sequence[Task]) -> list[BuiltFile]:
        """Build only the tasks' multi-vector heads; errors as `build`."""
        with lock(self.folder / ".lock", what=str(self.folder)):
            built = [self._projector(task) for task in tasks]
            write_sums(self.folder)
        return built

    def _projector(self, task: Task) -> BuiltFile:
        """A task's multi-vector head: built, or kept from an earlier run."""
        path = projector_path(self.folder, family=self.family, task=task)
        if card := self._kept(path, made_from="", imatrix=""):
            return BuiltFile(path, card, fresh=False)
        sha256 = write_projector(self.checkpoint, task=task, out=path, family=self.family)
        return self._finished(self._card(path, task, KIND.name, sha256))

    def _adapter(self, task: Task) -> BuiltFile:
        path = adapter_path(self.folder, task)
        if (card := self._kept(path, made_from="", imatrix="")) and card.family == self.family:
            return BuiltFile(path, card, fresh=False)
        progress = self.steps(path.name)
        sha256 = write_adapter(self.checkpoint, task=task, out=path, family=self.family, progress=progress)
        return self._finished(self._card(path, task, ADAPTER_KIND.name, sha256))

    def _task(self, task: Task | None, file_types: Sequence[str]) -> list[BuiltFile]:
        built = {kind: self._converted(task, kind) for kind in file_types if kind in FLOAT_FILE_TYPES}
        wanted = [kind for kind in file_types if kind not in built]
        helped = [kind for kind in wanted if kind not in WITHOUT and self.collect]
        base = built[BASE]
        for one in [task] if task else Task:
            self._projector(one)
        built |= self._quantized(task, [kind for kind in wanted if kind not in helped], base, None)
        if helped:
            built |= self._quantized(task, helped, base, self._matrix(task, base))
        return [built[kind] for kind in file_types]

    def _converted(self, task: Task | None, file_type: str) -> BuiltFile:
        path = self._path(task, file_type)
        if card := self._kept(path, made_from="", imatrix=""):
            self.total.skip(path.name)
            return BuiltFile(path, card, fresh=False)
        progress = self.total.part(path.name, progress=self.steps(path.name))
        report = convert(
            self.checkpoint, task=task, out=path, family=self.family, file_type=file_type, progress=progress
        )
        return self._finished(self._proved(self._card(path, task, file_type, report.sha256), task))

    def _quantized(
        self, task: Task | None, file_types: Sequence[str], base: BuiltFile, made: MadeMatrix | None
    ) -> dict[str, BuiltFile]:
        paths = {kind: self._path(task, kind) for kind in file_types}
        imatrix = made.sha256 if made else ""
        cards = {kind: self._kept(path, made_from=base.card.sha256, imatrix=imatrix) for kind, path in paths.items()}
        built = {kind: BuiltFile(paths[kind], card, fresh=False) for kind, card in cards.items() if card}
        for file in built.values():
            self.total.skip(file.path.name)
        missing = [kind for kind in file_types if kind not in built]
        for start in range(0, len(missing), TOGETHER):
            kinds = missing[start : start + TOGETHER]
            mixes = {paths[kind]: Mix(kind, imatrix=made.matrix if made else None) for kind in kinds}
            step = self.steps(paths[kinds[0]].name if len(kinds) == 1 else f"{stem_of(task)}: {', '.join(kinds)}")
            progress = self.total.part(*(path.name for path in mixes), progress=step)
            reports = quantize_many(base.path, mixes, threads=self.threads, progress=progress)
            for kind, report in zip(kinds, reports, strict=True):
                worst, error = report.worst
                card = self._card(report.path, task, kind, report.sha256)
                origin = replace(card, made_from=base.card.sha256, imatrix=imatrix)
                told = replace(origin, worst_tensor=worst, worst_error=float(f"{error:.3g}"))
                built[kind] = self._finished(self._proved(told, task))
        return built

    def _matrix(self, task: Task | None, base: BuiltFile) -> MadeMatrix:
        path = matrix_path(self.folder, task)
        assert self.collect
        origin = f"{base.card.sha256} {self.collect.calibration} {made_by()}"
        if found := kept(path, origin):
            self.total.skip(path.name)
            return found
        progress = self.total.part(path.name, progress=self.steps(path.name))
        return keep(path, self.collect.run(base.path, progress), origin)

    def _path(self, task: Task | None, file_type: str) -> Path:
        return model_path(self.folder, family=self.family, task=task, file_type=file_type)

    def _proved(self, card: Card, task: Task | None) -> Card:
        """The card with the self-test vectors of its file; a base has none, since it belongs to no single task."""
        return card if self.prove is None or task is None else replace(card, proof=self.prove(self.folder / card.file))

    def _finished(self, card: Card) -> BuiltFile:
        card.write(self.folder)
        return BuiltFile(self.folder / card.file, card, fresh=True)

    def _kept(self, path: Path, *, made_from: str, imatrix: str) -> Card | None:
        """The card of a file that an earlier run of this version made from the same checkpoint; else None."""
        try:
            card = Card.read(path) if path.exists() else None
        except FileFormatError:  # of another version, or damaged: the file is built again
            return None
        if card is None:
            return None
        theirs, ours = (card.made_from, card.imatrix, card.made_by), (made_from, imatrix, made_by())
        same = card.source == self.checkpoint.source and theirs == ours
        return card if same and card.sha256 == sha256_file(path) else None

    def _card(self, path: Path, task: Task | None, file_type: str, sha256: str) -> Card:
        file = GGUFFile.open(path)
        parameters = sum(prod(info.shape) for info in file.tensors.values())
        stored = sum(info.size_bytes for info in file.tensors.values())
        licence = file.metadata.get("general.license")
        return Card(
            file=path.name,
            sha256=sha256,
            size_bytes=path.stat().st_size,
            bits_per_weight=round(8 * stored / parameters, 4),
            parameters=parameters,
            file_type=file_type,
            tensor_types=dict(sorted(Counter(info.kind.name for info in file.tensors.values()).items())),
            family=self.family,
            task=task or BASE_STEM,
            source=self.checkpoint.source,
            licence=str(licence.value) if licence else "",
            made_from="",
            made_by=made_by(),
        )


def made_by() -> str:
    """The version on a card; files of another version are built again."""
    return f"nestling {__version__}"
