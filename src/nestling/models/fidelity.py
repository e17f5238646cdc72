"""Fidelity: how near files come to the one that they were made from, by their vectors of calibration texts.

Results are cached beside the files, by the files' hashes: a build that is run again measures only what is new.
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

RECORD = "nearness.json"
TEXTS, LONGEST = 32, 128
"""Paragraphs of the package's calibration text, and the tokens they are cut at."""


@dataclass(frozen=True, slots=True)
class Nearness:
    """Cosine to the other file's vectors: mean and lowest over the texts."""

    mean: float
    lowest: float


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a folder's files: `nearness.json`, nearness by the hashes of file and base."""

    folder: Path
    known: dict[str, Nearness]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it; a record that is missing, spoilt or another version's is an empty one."""
        known: dict[str, Nearness] = {}
        with suppress(FileFormatError, ValueError, TypeError, KeyError, AttributeError):
            raw = json.loads(read_text(folder / RECORD))
            if raw["made_by"] == __version__:
                known = {key: Nearness(float(one["mean"]), float(one["lowest"])) for key, one in raw["files"].items()}
        return cls(folder, known)

    def complete(
        self, cards: Sequence[Card], base: Card, *, threads: int | None = None, progress: Progress = no_progress
    ) -> dict[Path, Nearness]:
        """The nearness of every file to `base`; what is not known is measured and written down."""
        keys = {self.folder / card.file: f"{card.sha256} {base.sha256}" for card in cards}
        missing = [path for path, key in keys.items() if key not in self.known]
        if missing:
            found = nearness(missing, self.folder / base.file, threads=threads, progress=progress)
            self._add({keys[path]: one for path, one in found.items()})
        progress(1, 1)
        return {path: self.known[key] for path, key in keys.items()}

    def _add(self, found: dict[str, Nearness]) -> None:
        """Merge the new results into the record, which another run may have changed meanwhile."""
        with lock(self.folder / ".lock", what=str(self.folder)):
            self.known.update(self.read(self.folder).known | found)
            files = {key: asdict(one) for key, one in sorted(self.known.items())}
            with atomic_write(self.folder / RECORD) as file:
                file.write((json.dumps({"made_by": __version__, "files": files}, indent=1) + "\n").encode())


def nearness(
    files: Sequence[Path], base: Path, *, threads: int | None = None, progress: Progress = no_progress
) -> Mapping[Path, Nearness]:
    """Compare the vectors of files with those of `base`, all of one task model that says what it is for.

    Bases are compared with the first of their adapters.
    """
    with closing(Embedder.load(base, threads=threads)) as embedder:
        texts = Calibration(embedder.spec, embedder.tokenizer, default_text()).texts(TEXTS, longest=LONGEST)
        wanted = embedder.pool(plain(texts))
    found: dict[Path, Nearness] = {}
    for path in files:
        with closing(Embedder.load(path, threads=threads)) as embedder:
            cosines = paired_cosine(embedder.pool(plain(texts)), wanted)
        found[path] = Nearness(float(cosines.mean()), float(cosines.min()))
        progress(len(found), len(files))
    return found
