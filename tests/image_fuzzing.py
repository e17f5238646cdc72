"""Mutated image files by the thousand: each must be an image or an ImageError, in bounded time and memory.

Seeds are sound files of the five formats and bombs of every kind; mutations are cuts, flipped bits, spliced, repeated
and overwritten runs, sizes written into headers (with a PNG's checksums made right again, or no mutation would get past
them).
"""

import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image
from tests.golden.patterns import gradient, noise
from tests.picture_files import frames, png, raw_png, saved, with_frame_size

from nestling.errors import ImageError
from nestling.inputs.image import read

SIDES = (0, 1, 27, 200, 201, 4_000, 6_500, 7_071, 16_383, 65_535, 2**31 - 1, 2**32 - 1)


@dataclass(slots=True)
class Tally:
    """What became of the files: images, refusals by kind, the longest time in seconds, growth of memory in bytes."""

    images: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    grown_bytes: int = 0


def run(count: int, *, seed: int = 0, last: Sequence[bytes] = ()) -> Tally:
    """Read `count` mutated files, then the `last` as they are; anything but an image or an ImageError comes through."""
    chance, tally = random.Random(seed), Tally()
    files = seeds()
    read(files[0])
    before = _resident_at_the_most(anew=True)
    for data in chain(mutated(files, count, chance), last):
        began = time.perf_counter()
        try:
            assert read(data).tokens >= 1
            tally.images += 1
        except ImageError as error:
            tally.refused[type(error).__name__] += 1
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began)
    tally.grown_bytes = _resident_at_the_most(anew=False) - before
    return tally


def _resident_at_the_most(*, anew: bool) -> int:
    """Highest resident bytes of this process, from now on if `anew`. Linux only."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def seeds() -> list[bytes]:
    """Sound files of all kinds."""
    picture, grey = Image.fromarray(noise(40, 50)), Image.fromarray(gradient(40, 50)[:, :, 0])
    kinds = [picture, grey, picture.convert("P"), picture.convert("RGBA"), picture.convert("1"), grey.convert("LA")]
    files = [saved(one, "PNG") for one in kinds] + [saved(one, "WEBP", lossless=True) for one in kinds[:4]]
    files += [saved(one, "GIF") for one in kinds[:3]] + [saved(one, "BMP") for one in (*kinds[:4], kinds[4])]
    files += [saved(picture, "JPEG", **more) for more in ({}, {"progressive": True}, {"subsampling": 0})]
    files += [saved(picture.convert("CMYK"), "JPEG"), saved(grey, "JPEG"), saved(picture, "WEBP")]
    files += [frames(3, kind) for kind in ("GIF", "PNG", "WEBP")]
    files += [png(gradient(40, 50), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"), raw_png(9, 9, bytes(300), interlaced=1)]
    return files


def bombs() -> list[bytes]:
    """Small files of huge pictures, the largest that are let in among them."""
    jpeg, progressive = (saved(noise(16, 16), "JPEG", progressive=one) for one in (False, True))
    size = struct.pack("<HH", 7000, 7000)
    gif = b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + size
    return [
        raw_png(7000, 7000, bytes(7001) * 7000),
        raw_png(19_000, 19_000, bytes(19_001) * 100),
        with_frame_size(jpeg, 7000, 7000),
        with_frame_size(progressive, 4900, 4900),
        with_frame_size(jpeg, 65_500, 65_500),
        gif + b"\0\x02\x4c\x01\0;",
        saved(Image.new("RGB", (3600, 3600)), "WEBP", lossless=True),
        saved(Image.new("RGB", (3600, 3600)), "WEBP"),
        saved(Image.new("RGBA", (7000, 7000)), "PNG"),
        saved(Image.new("L", (7000, 7000)), "JPEG"),
        saved(Image.new("RGB", (3600, 3600)), "JPEG", progressive=True),
        saved(Image.new("P", (7000, 7000)), "GIF"),
        saved(Image.new("1", (7000, 7000)), "BMP"),
        saved(Image.new("RGB", (16_000, 80)), "PNG"),
    ]


def mutated(files: list[bytes], count: int, chance: random.Random) -> Iterator[bytes]:
    """`count` files, each one of `files` with one to four changes."""
    for _ in range(count):
        data = bytearray(chance.choice(files))
        for _ in range(chance.randint(1, 4)):
            chance.choice(_CHANGES)(data, chance)
        yield with_checksums(data) if data[1:4] == b"PNG" and chance.random() < 0.8 else bytes(data)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 30)) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _early(data: bytearray, chance: random.Random) -> None:
    """A byte near the front, where headers are."""
    for _ in range(3 if data else 0):
        data[chance.randrange(min(len(data), 60))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _splice(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start : start + chance.randrange(200)] = chance.randbytes(chance.randrange(200))


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start:start] = data[start : start + chance.randrange(300)] * chance.choice((1, 2, 50))


def _size(data: bytearray, chance: random.Random) -> None:
    """Another size where a PNG, GIF, BMP or WebP has it."""
    side, start = chance.choice(SIDES), chance.choice((6, 8, 16, 18, 20, 22, 24, 26, 27, 28))
    form = chance.choice(("<I", ">I")) if side > 65_535 else chance.choice(("<I", ">I", "<H", ">H"))
    if len(data) > start + 4:
        struct.pack_into(form, data, start, side)


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (_cut, _flip, _flip, _early, _splice, _repeat, _size)


def with_checksums(data: bytearray) -> bytes:
    """A PNG whose chunks, as far as they can be followed, have right checksums."""
    at = 8
    while at + 12 <= len(data):
        stop = at + 8 + struct.unpack_from(">I", data, at)[0]
        if stop + 4 > len(data):
            break
        struct.pack_into(">I", data, stop, zlib.crc32(data[at + 4 : stop]))
        at = stop + 4
    return bytes(data)
