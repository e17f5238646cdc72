"""From a caller's image to strips of RGB rows: path, file's bytes, data URI, PIL image, numpy array.

The size in the header is checked against the limits before a pixel is decoded. Errors never show a library's message
and have index 0. Does not know models. Opens no connection: a URL is an error that says so.
"""

import base64
import binascii
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nestling._util.extras import need
from nestling.errors import ImageError, ImageSizeError
from nestling.inputs.image.header import Header, read_header
from nestling.inputs.image.resize import Pixels

MIB = 1 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_BLANKS = str.maketrans("", "", "\r\n")


@runtime_checkable
class _PillowImage(Protocol):
    """The part of a PIL image's interface that is used; a protocol, so that typing does not import Pillow."""

    @property
    def mode(self) -> str:
        """Pixel format."""
        ...

    def load(self) -> Any:  # noqa: ANN401 - Pillow's own
        """Decode."""
        ...


ImageLike = str | Path | bytes | bytearray | memoryview | NDArray[np.uint8] | _PillowImage
"""The accepted forms of an image; a str is a path or a data URI."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an image: bytes of its file, pixels, and peak memory of decoding in bytes."""

    file_bytes: int = 64 * MIB
    pixels: int = 50_000_000
    memory_bytes: int = 200 * MIB


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Source:
    """An image within the limits, not yet decoded: its size, the memory that decoding takes, and how to decode it."""

    height: int
    width: int
    memory_bytes: int
    strips: Callable[[], Iterable[Pixels]]


def is_image(value: object) -> bool:
    """True for any `ImageLike` other than a str."""
    return isinstance(value, bytes | bytearray | memoryview | Path | np.ndarray | _PillowImage)


def is_path(text: str) -> bool:
    """True for a str that is taken for a path: neither a data URI nor a URL."""
    return text[:5].lower() != "data:" and not _URL.match(text)


def open_any(value: object, *, limits: Limits = LIMITS) -> Source:
    """Open a path, data URI, bytes, PIL image or array; ImageError for anything else."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return open_bytes(bytes(value), limits=limits)
    if isinstance(value, np.ndarray):
        return open_array(value, limits=limits)
    if isinstance(value, (str, Path)):
        return _open_named(value, limits=limits)
    if "PIL.Image" in sys.modules and _pillow().is_image(value):
        return _open_pil(value, limits=limits)
    raise ImageError(f"expected a path, bytes, a PIL image or a numpy array, not {type(value).__name__}", index=0)


def open_bytes(data: bytes, *, limits: Limits = LIMITS) -> Source:
    """Open a file's bytes; ImageError if they are not an image, ImageSizeError beyond a limit."""
    if len(data) > limits.file_bytes:
        raise ImageSizeError(f"{len(data)} bytes: expected at most {limits.file_bytes}", index=0)
    header = read_header(data)
    check_size(header, limits)
    pillow = _pillow()
    image = pillow.opened(data, header.format)
    found = replace(header, width=image.size[0], height=image.size[1])
    check_size(found, limits)  # again, since a decoder may read another size from the header
    if image.mode not in pillow.MODES:
        raise ImageError("16 or 32 bits per channel: convert it to 8 bits", index=0)
    return Source(
        found.height,
        found.width,
        found.width * found.height * found.pixel_bytes,
        lambda: pillow.strips(pillow.loaded(image, data, header.format)),
    )


def open_base64(text: str, *, limits: Limits = LIMITS) -> Source:
    """Open base64 (line breaks allowed) or a data URI; ImageError for anything else."""
    return open_bytes(decoded_base64(text, limits=limits), limits=limits)


def decoded_base64(text: str, *, limits: Limits = LIMITS) -> bytes:
    """The bytes of a data URI or of bare base64; a declared type must be an image type and is otherwise ignored."""
    if match := _DATA_URI.match(text):
        kind, options = match[1].lower(), match[2].lower()
        if not kind.startswith("image/") or kind == "image/svg+xml":
            raise ImageError(f"data URI of {kind[:40] or 'no type'}: expected an image type such as image/png", index=0)
        if not options.endswith(";base64"):
            raise ImageError("data URI: expected ;base64 before the comma", index=0)
        text = text[match.end() :]
    elif text[:5].lower() == "data:":
        raise ImageError("data URI: expected data:image/png;base64,... with base64 after the comma", index=0)
    if len(text) * 3 // 4 > limits.file_bytes + len(text) // 32:
        raise ImageSizeError(f"{len(text) * 3 // 4} bytes: expected at most {limits.file_bytes}", index=0)
    text = text.translate(_BLANKS)
    with suppress(ValueError, binascii.Error):
        if len(text) % 4 == 0:
            return base64.b64decode(text, validate=True)
    raise ImageError("not base64: expected A-Z a-z 0-9 + / with = at the end", index=0)


def open_array(array: NDArray[Any], *, limits: Limits = LIMITS) -> Source:
    """Open a uint8 array: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, whose alpha is dropped."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):  # noqa: PLR2004 - axes and channels
        raise ImageError(
            f"array of {array.dtype} and shape {array.shape}: expected uint8 and (H, W), (H, W, 3) or (H, W, 4)",
            index=0,
        )
    height, width = array.shape[:2]
    _check_sides(height, width, limits)
    rgb = np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array[:, :, :3]  # noqa: PLR2004 - grey
    return Source(height, width, 0, lambda: [np.ascontiguousarray(rgb)])


def check_size(header: Header, limits: Limits) -> None:
    """ImageSizeError for too many pixels, or for pixels that take too much memory to decode."""
    _check_sides(header.height, header.width, limits)
    if (wanted := header.width * header.height * header.pixel_bytes) > limits.memory_bytes:
        raise ImageSizeError(
            f"{header.width}x{header.height} pixels take {wanted // MIB} MiB to decode as this {header.format}; at"
            f" most {limits.memory_bytes // MIB} MiB are allowed; make it smaller",
            index=0,
        )


def _check_sides(height: int, width: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise ImageSizeError(f"{width}x{height} pixels: expected at most {limits.pixels}; make it smaller", index=0)


def _open_named(name: str | Path, *, limits: Limits) -> Source:
    text = str(name)
    if isinstance(name, str) and text[:5].lower() == "data:":
        return open_base64(text, limits=limits)
    if isinstance(name, str) and not is_path(text):
        raise ImageError("URLs are not downloaded here: give the path or the bytes of the image", index=0)
    return open_bytes(read_file(Path(name), limits=limits), limits=limits)


def read_file(path: Path, *, limits: Limits = LIMITS) -> bytes:
    """A regular file's bytes; ImageError naming the path if it is missing, a folder, a pipe or a device."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ImageError(f"{path}: cannot be read: {reason}", index=0) from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise ImageError(f"{path}: not a regular file", index=0)
    with os.fdopen(handle, "rb") as file:
        data = file.read(limits.file_bytes + 1)
    if len(data) > limits.file_bytes:
        raise ImageSizeError(f"{path}: {found.st_size} bytes; expected at most {limits.file_bytes}", index=0)
    return data


def _open_pil(image: Any, *, limits: Limits) -> Source:  # noqa: ANN401 - a PIL image
    pillow = _pillow()
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError(f"{width}x{height} pixels: expected at least 1x1", index=0)
    _check_sides(height, width, limits)
    return Source(height, width, 0, lambda: pillow.strips(pillow.checked(image)))


def _pillow() -> Any:  # noqa: ANN401 - a module
    need("PIL.Image", wanted_for="an image", extra="images")
    from nestling.inputs.image import pillow

    return pillow
