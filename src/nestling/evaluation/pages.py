"""Pages of a visual benchmark: images in files or in a Parquet column, read when they are needed.

Image columns hold bytes or {bytes, path}, as in data sets on the Hugging Face hub. The images of one row group are in
memory at a time, never those of a whole file. Does not know layouts or decoders.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nestling.errors import FileFormatError, NestlingError
from nestling.evaluation import extras

IMAGE = "image"
"""The column or JSON key of a page's image."""


@dataclass(frozen=True, slots=True)
class Page:
    """An image: a file, or (row group, row) of a Parquet file. `sha256` is the hash of its bytes, in hex."""

    file: Path
    sha256: str
    place: tuple[int, int] | None = None

    @classmethod
    def of(cls, file: Path) -> "Page":
        """The page of an image file; OSError when it cannot be read."""
        return cls(file, hashlib.sha256(file.read_bytes()).hexdigest())

    def __str__(self) -> str:
        return f"{self.file}" + (f", row group {self.place[0]}, row {self.place[1]}" if self.place else "")

    def read(self) -> bytes:
        """The image file's bytes."""
        if self.place is None:
            return self.file.read_bytes()
        group, row = self.place
        data = _images(self.file, group)[row]
        assert data is not None, "a page without an image"
        return data


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, with each image replaced by a `Page` or None."""
    try:
        yield from _rows(path)
    except NestlingError:
        raise
    except Exception as error:  # noqa: BLE001 - the library's own error classes
        raise FileFormatError(f"{path}: not a parquet file ({' '.join(str(error).split())[:120]})") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    file = _opened(path)
    others = [name for name in file.schema_arrow.names if name != IMAGE]
    has_images = len(others) < len(file.schema_arrow.names)
    for group in range(file.metadata.num_row_groups):
        rows = file.read_row_group(group, columns=others).to_pylist()
        images = _images(path, group) if has_images else []
        pages = [data and Page(path, hashlib.sha256(data).hexdigest(), (group, at)) for at, data in enumerate(images)]
        yield from ({**row, IMAGE: page} for row, page in zip(rows, pages, strict=True)) if has_images else rows


def _opened(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    parquet = extras.need("pyarrow.parquet", wanted_for=f"reading {path.name}")
    return parquet.ParquetFile(path)


@lru_cache(maxsize=1)
def _images(path: Path, group: int) -> list[bytes | None]:
    """The bytes of the image files of a row group."""
    values = _opened(path).read_row_group(group, columns=[IMAGE]).column(0).to_pylist()
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]
