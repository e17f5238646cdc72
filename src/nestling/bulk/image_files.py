"""Images of a source: a folder's image files as rows, and what a column's value means as an image.

Files are read on demand, and decoded elsewhere.
"""

from pathlib import Path

import pyarrow as pa

from nestling.bulk.rows import Columns, Mark, OnIds, Rows, Survey, Wanted
from nestling.bulk.sources import LOCAL, Found
from nestling.errors import ImageError
from nestling.inputs.image import LIMITS, is_path, read_file

PARTS = {"bytes", "path"}
"""Keys of an image as Hugging Face datasets store it."""
SHOWN_LETTERS = 100
"""Most characters of a path in a message: a "path" may be long base64."""


class ImageFilesReader:
    """All image files of a source: a row is a file, its id the file's path below the source."""

    def __init__(self, file: Found) -> None:
        self._files = file.parts

    def survey(self, wanted: Wanted, _every: int, on_ids: OnIds) -> Survey:
        """One row per file."""
        if wanted.id is None:
            return Survey(len(self._files), (), pa.schema([]), (), images=True)
        on_ids([file.name for file in self._files])
        return Survey(len(self._files), (), pa.schema([(wanted.id, pa.string())]), (wanted.id,), images=True)

    def read(self, start: int, stop: int, _mark: Mark, columns: Columns) -> Rows:
        """Files [start, stop)."""
        files = self._files[start:stop]
        kept = {field.name: pa.nulls(len(files), field.type) for field in columns.kept}
        ids: list[object] | None = [file.name for file in files] if columns.id else None
        return Rows([None] * len(files), ids, kept, {}, list(files))

    def close(self) -> None:
        """Nothing is open."""


def contents(value: object, table: Found) -> bytes | str:
    """A row's image as an embedder takes it: a file's bytes or a data URI.

    `value`: an image file of the source, or what a column of `table` has: bytes, a path from the table's folder, a
    data URI, or {bytes, path} as Hugging Face datasets store an image. ImageError for anything else.
    """
    if isinstance(value, dict) and PARTS & value.keys():
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, Found):
        return _read(value)
    if isinstance(value, str):
        return _read(table.beside(value)) if is_path(value) else value
    if isinstance(value, bytes):
        return value
    raise ImageError(f"expected a path, a file's bytes or a data URI, not {type(value).__name__}", index=0)


def is_empty(value: object) -> bool:
    """True where a row has no image: null, an empty string (as CSV stores nothing), or an image of both nulls."""
    if isinstance(value, dict):
        return value.keys() <= PARTS and all(part is None for part in value.values())
    return value is None or value == ""


def _read(file: Found) -> bytes:
    name, path = f"{file.name:.{SHOWN_LETTERS}}", file.url.removeprefix(LOCAL)
    if file.fault:
        raise ImageError(f"{name}: {file.fault}", index=0)
    try:
        if path != file.url:
            return read_file(Path(path))
        with file.open() as stream:
            return stream.read(LIMITS.file_bytes + 1)
    except ImageError as error:
        raise ImageError(f"{name}: {error.reason.removeprefix(path + ': ')}", index=0) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read ({str(error).splitlines()[0]})", index=0) from None
