"""Checks of a JPEG before Pillow decodes it: its frame header, and where its pixel data ends.

libjpeg fills data that is missing before the end marker with grey, without an error that Pillow could see. Without the
marker it asks for more data, and Pillow reports a truncated file. So the marker is removed from JPEGs of one scan, the
usual kind; a progressive one that was truncated and then closed with a marker is not detected. Segments as in ITU-T
T.81; anything invalid is a ValueError.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MOST_SEGMENTS = 100_000
"""How many segments are searched for the frame header."""
PADDING = b"\xff\x00" * 8
"""Bits of 1, which are no Huffman code: libjpeg needs bits after the last code to decode it."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
"""Markers without a segment, and 0, which is not a marker."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ONE_SCAN = frozenset({0xC0, 0xC1})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN_ENDS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header: its marker, size in pixels, and each component's sampling factors, multiplied."""

    marker: int
    width: int
    height: int
    samples: tuple[int, ...]

    @property
    def held_bytes(self) -> int:
        """Bytes of coefficients per pixel that a decoder holds for the whole image: 0 for a sequential JPEG."""
        if self.marker not in _PROGRESSIVE:
            return 0
        return -(-2 * sum(self.samples) // max(1, *self.samples))


def read_frame(data: bytes) -> Frame:
    """The frame header before the first scan; ValueError unless there is exactly one."""
    frames = [(marker, at) for marker, at in _segments(data) if marker in _FRAMES]
    if len(frames) != 1:
        raise ValueError
    [(marker, at)] = frames
    try:
        height, width, components = struct.unpack_from(">HHB", data, at + 3)
        factors = [data[at + 9 + 3 * place] for place in range(components)]
    except (struct.error, IndexError):
        raise ValueError from None
    return Frame(marker, width, height, tuple((one >> 4) * (one & 15) for one in factors))


def open_ended(data: bytes) -> bytes:
    """Remove the end marker of a JPEG of one scan; others are returned unchanged."""
    frame, (marker, start) = read_frame(data), list(_segments(data))[-1]
    one_scan = frame.marker in _ONE_SCAN and marker == _START_OF_SCAN and data[start + 2] == len(frame.samples)
    ends = _SCAN_ENDS.search(data, start) if one_scan else None
    if ends is None or data[ends.start() + 1] != _END_OF_IMAGE:
        return data
    return data[: ends.start()] + PADDING


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset of its length) of each segment up to the first scan; ValueError for a truncated file."""
    at = 2
    try:
        for _ in range(MOST_SEGMENTS):
            at = _marker(data, at)
            marker, at = data[at], at + 1
            if marker in _ALONE:
                continue
            yield marker, at
            if marker in (_START_OF_SCAN, _END_OF_IMAGE):
                return
            at += struct.unpack_from(">H", data, at)[0]
    except (struct.error, IndexError):
        raise ValueError from None
    raise ValueError


def _marker(data: bytes, at: int) -> int:
    """The offset of the next marker's second byte; bytes before it are skipped, as decoders do."""
    found = data.find(b"\xff", at)
    at = found if found >= 0 else len(data)
    while data[at] == 0xFF:  # noqa: PLR2004 - fill bytes
        at += 1
    return at
