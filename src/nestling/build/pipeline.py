"""A checkpoint to a folder of files: every task in every file type, each file with its card.

A rerun takes up where the last one stopped: a file whose card fits the checkpoint and whose bytes fit its card is
kept. The F16 file is always made and kept: every quantized file is made from it and measured against it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nestling._version import __version__
from nestling.build.checkpoint import Checkpoint
from nestling.build.convert import convert
from nestling.build.plan import Mix
from nestling.build.quantize import quantize
from nestling.card import Card, write_sums
from nestling.errors import FileFormatError
from nestling.files import Progress, lock, no_progress, sha256_file
from nestling.gguf_io import GGUFFile
from nestling.quants import FLOAT_FILE_TYPES
from nestling.spec import Task

BASE = "F16"
Steps = Callable[[str], Progress]
"""Told a step's name when it begins; answers with what is to be told of its progress."""


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """One file of a build; `fresh` is False when an earlier run had made it."""

    path: Path
    card: Card
    fresh: bool


def model_path(folder: Path, *, family: str, task: Task, file_type: str) -> Path:
    """The published name of a file: `{family}-text-{task}-{QUANT}.gguf`."""
    return folder / f"{family}-text-{task.stem}-{file_type}.gguf"


def silent(_step: str) -> Progress:
    """Steps that nobody watches."""
    return no_progress


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Builds files of one checkpoint into one folder under one family name."""

    checkpoint: Checkpoint
    folder: Path
    family: str
    threads: int
    steps: Steps = silent

    def build(self, tasks: Sequence[Task], file_types: Sequence[str]) -> list[BuiltFile]:
        """Make every file of every task, F16 first; CheckpointError and BuildError say what stands in the way."""
        with lock(self.folder / ".lock"):
            built = [self._file(task, kind) for task in tasks for kind in (BASE, *self._others(file_types))]
            write_sums(self.folder)
        return built

    @staticmethod
    def _others(file_types: Sequence[str]) -> list[str]:
        return [kind for kind in dict.fromkeys(file_types) if kind != BASE]

    def _file(self, task: Task, file_type: str) -> BuiltFile:
        path = model_path(self.folder, family=self.family, task=task, file_type=file_type)
        made_from = ""
        if file_type not in FLOAT_FILE_TYPES:
            base = Card.read(model_path(self.folder, family=self.family, task=task, file_type=BASE))
            made_from = base.sha256 if base else ""
        if card := self._kept(path, made_from):
            return BuiltFile(path, card, fresh=False)
        progress = self.steps(path.name)
        if made_from:
            source = model_path(self.folder, family=self.family, task=task, file_type=BASE)
            sha256 = quantize(source, out=path, mix=Mix(file_type), threads=self.threads, progress=progress).sha256
        else:
            report = convert(
                self.checkpoint, task=task, out=path, family=self.family, file_type=file_type, progress=progress
            )
            sha256 = report.sha256
        card = self._card(path, task, file_type, sha256, made_from)
        card.write(self.folder)
        return BuiltFile(path, card, fresh=True)

    def _kept(self, path: Path, made_from: str) -> Card | None:
        """The card of a file that an earlier run finished from the same checkpoint with this version; else None."""
        try:
            card = Card.read(path) if path.exists() else None
        except FileFormatError:  # another version's, or spoilt: the file is made again
            return None
        if card is None:
            return None
        same = (card.source, card.made_from, card.made_by) == (self.checkpoint.source, made_from, _made_by())
        return card if same and card.sha256 == sha256_file(path) else None

    def _card(self, path: Path, task: Task, file_type: str, sha256: str, made_from: str) -> Card:
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
            task=task,
            source=self.checkpoint.source,
            licence=str(licence.value) if licence else "",
            made_from=made_from,
            made_by=_made_by(),
        )


def _made_by() -> str:
    return f"nestling {__version__}"
