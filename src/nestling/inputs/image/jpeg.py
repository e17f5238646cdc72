"""What of a JPEG has to be known before Pillow decodes it: its frame, and where its pixels end.

libjpeg fills up with grey what is missing before the end marker, and Pillow does not hear of it; without the marker it
waits for the rest, and Pillow says that the file is cut. That works for the usual JPEG of one scan; a progressive one
that was cut and closed again is shown as it is. Segments by ITU-T T.81; anything wrong is a ValueError without words.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MOST_SEGMENTS = 100_000
"""Segments that the frame is looked for behind."""
PADDING = b"\xff\x00" * 8
"""Ones, which no Huffman code is all of: what libjpeg wants to see behind the last code to decode it."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
"""Markers without a segment behind them, and 0, which is no marker."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ONE_SCAN = frozenset({0xC0, 0xC1})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_SCAN_ENDS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header: its marker, size in pixels, and how often each component is sampled in a unit of the frame."""

    marker: int
    width: int
    height: int
    samples: tuple[int, ...]

    @property
    def held_bytes(self) -> int:
        """Bytes a pixel of coefficients that a decoder holds for the whole picture: none of a sequential one."""
        if self.marker not in _PROGRESSIVE:
            return 0
        return -(-2 * sum(self.samples) // max(1, *self.samples))


def read_frame(data: bytes) -> Frame:
    """The one frame header before the first scan."""
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
    """A file of one scan without its end marker; others as they are."""
    frame, (marker, start) = read_frame(data), list(_segments(data))[-1]
    one_scan = frame.marker in _ONE_SCAN and marker == _START_OF_SCAN and data[start + 2] == len(frame.samples)
    ends = _SCAN_ENDS.search(data, start) if one_scan else None
    if ends is None or data[ends.start() + 1] != _END_OF_IMAGE:
        return data
    return data[: ends.start()] + PADDING


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of the length behind it, the first scan's last; ValueError when the file ends before."""
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
    """Where the next marker's second byte is; bytes in between belong to nothing, and decoders skip them."""
    found = data.find(b"\xff", at)
    at = found if found >= 0 else len(data)
    while data[at] == 0xFF:  # noqa: PLR2004 - fill bytes
        at += 1
    return at
