"""The folder of a checkpoint: a plain folder or one in the local hub cache, with checks of where its links lead.

A hub cache has `models--org--name/{blobs,refs,snapshots/<revision>}`; a snapshot's files are links into `blobs`, and
those may be links into `blobs` shared by all repositories. A link that leaves these folders (or the plain folder) is
refused. Does not know the files' contents.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from nestling._util.text import read_text
from nestling.errors import CheckpointError
from nestling.formats.safetensors import parse_json

MAX_JSON_BYTES = 25_000_000


@dataclass(frozen=True, slots=True)
class Folder:
    """A checkpoint's folder; its links must stay inside `boundary`.

    `repository` and `revision` are set for hub snapshots only.
    """

    path: Path
    boundary: Path
    repository: str = ""
    revision: str = ""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a plain folder, a `models--org--name` cache folder (its `main` revision) or one of its snapshots."""
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder")
        path = folder.resolve()
        if path.name.startswith("models--") and (path / "snapshots").is_dir():
            path = _main_snapshot(path)
        cache = path.parent.parent
        if path.parent.name == "snapshots" and cache.name.startswith("models--"):
            return cls(path, cache, cache.name.removeprefix("models--").replace("--", "/"), path.name)
        return cls(path, path)

    def file(self, name: str) -> Path:
        """The path of a file in the folder; CheckpointError when it is missing or a link leaves `boundary`."""
        path = self.path / PurePosixPath(name)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        homes = (self.boundary, self.boundary.parent / "blobs") if self.repository else (self.boundary,)
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise CheckpointError(
                f"{path}: a link that leaves {self.boundary}; a checkpoint's files must stay inside it"
            )
        return path

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        path = self.file(name)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        return parse_json(read_text(path, error=CheckpointError), what=str(path))


def _main_snapshot(cache: Path) -> Path:
    found = sorted(entry for entry in (cache / "snapshots").iterdir() if entry.is_dir())
    main = cache / "refs" / "main"
    if main.is_file():
        revision = read_text(main, error=CheckpointError).strip()
        found = [entry for entry in found if entry.name == revision]
    if len(found) != 1:
        raise CheckpointError(
            f"{cache}: expected one snapshot, found {len(found)}; name one folder of {cache / 'snapshots'}"
        )
    return found[0]
