"""Format and size of an image file, read from its header: PNG, JPEG, WebP, GIF and BMP.

Parsed by the formats' specifications, without Pillow, so that a file over a limit is refused before a decoder sees it.
Only the bytes count: file names and declared types are ignored. Does not check the pixel data.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from nestling._util.text import LFS, LFS_POINTER
from nestling.errors import ImageError
from nestling.inputs.image import jpeg, png

MOST_BLOCKS = 100_000
"""How many blocks of a GIF are searched for its first frame."""


class Format(StrEnum):
    """The supported formats, by Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    GIF = "GIF"
    BMP = "BMP"


@dataclass(frozen=True, slots=True)
class Header:
    """A file's format and size in pixels; `pixel_bytes` is a decoder's peak memory per pixel."""

    format: Format
    width: int
    height: int
    pixel_bytes: int = 4


def read_header(data: bytes) -> Header:
    """The header of an image file; ImageError for another format, a truncated file or a size of 0."""
    kind = next((kind for kind, is_it in _SIGNATURES.items() if is_it(data)), None)
    if kind is None:
        raise ImageError(f"{_looks_like(data)}; expected one of {', '.join(Format)}", index=0)
    try:
        header = _READERS[kind](data)
    except (struct.error, IndexError):
        raise unreadable(kind) from None
    if header.width < 1 or header.height < 1:
        raise ImageError(f"{header.width}x{header.height} pixels: expected at least 1x1", index=0)
    return header


def unreadable(kind: Format) -> ImageError:
    """The error for a file whose pixels cannot be decoded; the decoder's own message is never shown."""
    return ImageError(f"cannot be read as an image: the {kind} is damaged or truncated", index=0)


def _looks_like(data: bytes) -> str:
    if not data:
        return "empty"
    known = next((name for start, name in _OTHERS.items() if data.startswith(start)), None)
    return f"cannot be read as an image: this is {known}" if known else "cannot be read as an image"


_OTHERS = {
    LFS: LFS_POINTER,
    b"%PDF": "a PDF (render its pages first: pdftoppm -png)",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
    b"<!DOCTYPE": "HTML",
    b"<!doctype": "HTML",
    b"<html": "HTML",
    b"PK\x03\x04": "a zip archive",
    b"II*\x00": "a TIFF",
    b"MM\x00*": "a TIFF",
    b"8BPS": "a PSD",
    b"SIMPLE": "a FITS file",
    b"\x00\x00\x01\x00": "an icon",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
}
_SIGNATURES: dict[Format, Callable[[bytes], bool]] = {
    Format.PNG: lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    Format.JPEG: lambda data: data.startswith(b"\xff\xd8\xff"),
    Format.WEBP: lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP",
    Format.GIF: lambda data: data.startswith((b"GIF87a", b"GIF89a")),
    Format.BMP: lambda data: data.startswith(b"BM"),
}


def _png(data: bytes) -> Header:
    try:
        return Header(Format.PNG, *png.read_size(data))
    except ValueError:
        raise unreadable(Format.PNG) from None


def _jpeg(data: bytes) -> Header:
    try:
        frame = jpeg.read_frame(data)
    except ValueError:
        raise unreadable(Format.JPEG) from None
    return Header(Format.JPEG, frame.width, frame.height, 4 + frame.held_bytes)


def _webp(data: bytes) -> Header:
    """WebP (RFC 9649): the size is in another place for lossy, lossless and extended files."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise unreadable(Format.WEBP)
    return Header(Format.WEBP, width, height, 16)


def _gif(data: bytes) -> Header:
    """GIF89a: the logical screen, extended if the first frame reaches beyond it, as decoders do."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(MOST_BLOCKS):
        if data[at] == 0x2C:  # noqa: PLR2004 - an image descriptor
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            return Header(Format.GIF, max(width, left + wide), max(height, top + high))
        if data[at] != 0x21:  # noqa: PLR2004 - an extension
            break
        at = _after_blocks(data, at + 2)
    raise unreadable(Format.GIF)


def _after_blocks(data: bytes, at: int) -> int:
    for _ in range(MOST_BLOCKS):
        if not data[at]:
            return at + 1
        at += 1 + data[at]
    raise unreadable(Format.GIF)


def _bmp(data: bytes) -> Header:
    """Windows bitmaps, with a header of 12 bytes or a longer one; a negative height means top-down rows."""
    if struct.unpack_from("<I", data, 14)[0] == 12:  # noqa: PLR2004 - OS/2's header
        return Header(Format.BMP, *struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    return Header(Format.BMP, width, abs(height))


_READERS: dict[Format, Callable[[bytes], Header]] = {
    Format.PNG: _png,
    Format.JPEG: _jpeg,
    Format.WEBP: _webp,
    Format.GIF: _gif,
    Format.BMP: _bmp,
}
