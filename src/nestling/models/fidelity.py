"""Fidelity of quantized files: cosine of their vectors of calibration texts to those of the float file.

Results are cached in the files' folder, keyed by the files' hashes: a rerun of a build measures only new files.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from nestling._util.files import atomic_write, lock
from nestling._util.progress import Progress, no_progress
from nestling._util.text import read_text
from nestling._util.version import __version__
from nestling.engine.protocol import plain
from nestling.errors import FileFormatError
from nestling.formats.card import Card
from nestling.models.embedder import Embedder
from nestling.pipeline.quantization.calibration import Calibration, default_text
from nestling.vectors import paired_cosine

RECORD = "fidelity.json"
TEXTS, LONGEST = 32, 128
"""How many paragraphs of the shipped calibration text are embedded, and how many tokens of each."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Cosine to the float file's vectors: mean and lowest over the texts."""

    mean: float
    lowest: float


@dataclass(frozen=True, slots=True)
class Record:
    """The cached results of a folder, `fidelity.json`: fidelity by the hashes of the file and its float file."""

    folder: Path
    known: dict[str, Fidelity]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record; one that is missing, damaged or of another version counts as empty."""
        known: dict[str, Fidelity] = {}
        with suppress(FileFormatError, ValueError, TypeError, KeyError, AttributeError):
            raw = json.loads(read_text(folder / RECORD))
            if raw["made_by"] == __version__:
                known = {key: Fidelity(float(one["mean"]), float(one["lowest"])) for key, one in raw["files"].items()}
        return cls(folder, known)

    def complete(
        self, cards: Sequence[Card], base: Card, *, threads: int | None = None, progress: Progress = no_progress
    ) -> dict[Path, Fidelity]:
        """The fidelity of every file to `base`; what is not cached is measured and saved."""
        keys = {self.folder / card.file: f"{card.sha256} {base.sha256}" for card in cards}
        missing = [path for path, key in keys.items() if key not in self.known]
        if missing:
            found = measure_fidelity(missing, self.folder / base.file, threads=threads, progress=progress)
            self._add({keys[path]: one for path, one in found.items()})
        progress(1, 1)
        return {path: self.known[key] for path, key in keys.items()}

    def _add(self, found: dict[str, Fidelity]) -> None:
        """Merge new results into the record, which another process may have changed in the meantime."""
        with lock(self.folder / ".lock", what=str(self.folder)):
            self.known.update(self.read(self.folder).known | found)
            files = {key: asdict(one) for key, one in sorted(self.known.items())}
            with atomic_write(self.folder / RECORD) as file:
                file.write((json.dumps({"made_by": __version__, "files": files}, indent=1) + "\n").encode())


def measure_fidelity(
    files: Sequence[Path], base: Path, *, threads: int | None = None, progress: Progress = no_progress
) -> Mapping[Path, Fidelity]:
    """Compare the vectors of files with those of `base`, all of one task model with nestling metadata.

    Bases with LoRA adapters are compared with their first adapter.
    """
    with closing(Embedder.load(base, threads=threads)) as embedder:
        texts = Calibration(embedder.spec, embedder.tokenizer, default_text()).texts(TEXTS, longest=LONGEST)
        wanted = embedder.pool(plain(texts))
    found: dict[Path, Fidelity] = {}
    for path in files:
        with closing(Embedder.load(path, threads=threads)) as embedder:
            cosines = paired_cosine(embedder.pool(plain(texts)), wanted)
        found[path] = Fidelity(float(cosines.mean()), float(cosines.min()))
        progress(len(found), len(files))
    return found
