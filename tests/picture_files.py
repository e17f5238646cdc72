"""Image files made by script, sound and broken, for the tests of what takes images."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from tests.golden.patterns import gradient

from nestling.inputs.image.resize import Pixels


def saved(picture: Any, kind: str, **more: Any) -> bytes:
    """A PIL image, or pixels, as a file."""
    out = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    image.save(out, kind, **more)
    return out.getvalue()


def png(pixels: Pixels | None = None, **more: Any) -> bytes:
    """A small PNG."""
    return saved(gradient(60, 80) if pixels is None else pixels, "PNG", **more)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int = 8,
    colour: int = 0,
    interlaced: int = 0,
    extra: Sequence[bytes] = (),
) -> bytes:
    """A PNG of this header, with these bytes for rows and chunks in front of them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def with_frame_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size."""
    at = next(place for place in range(len(jpeg)) if jpeg[place] == 0xFF and jpeg[place + 1] in (0xC0, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def frames(count: int, kind: str) -> bytes:
    """An animation whose first frame is black, and every other one another grey than the one before."""
    all_of_them = [Image.new("RGB", (60, 60), (place % 256,) * 3) for place in range(count)]
    return saved(all_of_them[0], kind, save_all=True, append_images=all_of_them[1:], duration=40)
