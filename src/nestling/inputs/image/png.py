"""Checks of a PNG that Pillow does not make: the checksum of every chunk, and that no row is missing.

Pillow would fill a file that was truncated between two rows with black. Parsed by ISO/IEC 15948; anything invalid is a
ValueError.
"""

import struct
import zlib
from collections.abc import Iterator

MOST_CHUNKS = 100_000
"""A file of 60 MB has some 8,000."""
DEFLATE_RATIO = 1032
"""The largest compression factor of zlib (zlib.net, "Maximum Compression Factor")."""
INFLATED_BYTES = 1 << 20
"""Bytes that are decompressed at a time."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Adam7 passes: first x, first y, distance in x, distance in y."""
Chunk = tuple[bytes, memoryview]


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height; ValueError unless all chunks are valid, IHDR first, IEND last, with data for all rows."""
    found = list(_chunks(data))
    kinds = [kind for kind, _ in found]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1:
        raise ValueError
    if sum(_row_bytes(found[0][1])) > (1 + sum(map(len, _image_data(found)))) * DEFLATE_RATIO:
        raise ValueError
    width, height = struct.unpack_from(">II", found[0][1])
    return width, height


def check_rows(data: bytes) -> None:
    """ValueError unless the compressed data hold every row; decompresses without keeping the rows."""
    found = list(_chunks(data))
    left, stream = sum(_row_bytes(found[0][1])), zlib.decompressobj()
    try:
        for part in _image_data(found):
            waiting: bytes | memoryview = part
            while waiting and left > 0:
                left -= len(stream.decompress(waiting, INFLATED_BYTES))
                waiting = stream.unconsumed_tail
    except zlib.error:
        raise ValueError from None
    if left > 0:
        raise ValueError


def _chunks(data: bytes) -> Iterator[Chunk]:
    view, at = memoryview(data), 8
    for _ in range(MOST_CHUNKS):
        try:
            length, kind = struct.unpack_from(">I4s", data, at)
            stop = at + 8 + length
            same = zlib.crc32(view[at + 4 : stop]) == struct.unpack_from(">I", data, stop)[0]
        except struct.error:
            raise ValueError from None
        if not same:
            raise ValueError
        yield kind, view[at + 8 : stop]
        if kind == b"IEND":
            return
        at = stop + 4
    raise ValueError


def _image_data(found: list[Chunk]) -> Iterator[memoryview]:
    return (part for kind, part in found if kind == b"IDAT")


def _row_bytes(header: memoryview) -> Iterator[int]:
    """Bytes of each pass's rows with their filter bytes: one pass, or Adam7's seven."""
    try:
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
        bits = depth * _CHANNELS[colour]
    except (struct.error, KeyError):
        raise ValueError from None
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-max(width - left, 0) // across), -(-max(height - top, 0) // down)
        yield rows * (1 + (columns * bits + 7) // 8) if columns else 0
