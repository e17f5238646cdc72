"""Draws text with Pillow and knows where each token landed: which merged tokens of the tower should say it.

Does not know models; a tokenizer gives ids and offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from starter_recipe.eyes.fetch import listed
from starter_recipe.eyes.tower import CELL, PATCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

LATIN = listed(
    "DejaVuSans DejaVuSans-Bold DejaVuSansCondensed DejaVuSansMono DejaVuSerif LiberationSans-Regular "
    "LiberationSans-Bold LiberationSerif-Regular LiberationMono-Regular FreeSans FreeSerif FreeMono "
    "NotoSans-Regular NotoSerif-Regular NotoSansMono-Regular OpenSans-Regular Lato-Regular Roboto-Regular "
    "LinLibertine_R Cantarell-VF Junicode EBGaramond12-Regular texgyrepagella-regular texgyreheros-regular"
)
UNSEEN = ("Carlito-Regular", "Caladea-Regular", "Hack-Regular", "Inter-Regular")
"""Fonts of half of the pages of `pages-en`; nothing trains on them."""
CJK = ("NotoSansCJK-Regular", "NotoSerifCJK-Regular", "wqy-microhei", "wqy-zenhei", "ipag", "ipam")
SIZES = (13, 22)
"""Least and largest pixels of a font's em."""
SPACINGS = (1.15, 1.5)
MIDDLE, ABOVE, BELOW = 0.27, 0.75, 0.22
"""Ems from the baseline to the middle of small letters, to the top and to the bottom of a line's box."""
LEAST_SHARE = 0.05
"""Of a token in a cell; less is left out."""
SLOTS, CLASSES, UNKNOWN = 4, 95, -100
"""Places across a patch whose character is known, and how many characters (printable ASCII)."""
INVERTED = 0.125
"""Share of the looks that are light on dark."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a text is set: font, em in pixels, baseline distance in ems, margins, and grey levels."""

    font: Path
    size: int
    spacing: float = 1.3
    left: int = 6
    top: int = 6
    ink: int = 0
    paper: int = 255


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text: the height of its small letters' middle, and the edges of its characters, (len(text) + 1,)."""

    text: str
    middle: float
    edges: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image (H, W) uint8, the lines in it, and their tokens: ids (T,), boxes (T, 4) of x0, y0, x1, y1."""

    pixels: NDArray[np.uint8]
    lines: list[Line]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]

    @property
    def text(self) -> str:
        """The text in the image."""
        return " ".join(line.text for line in self.lines if line.text)

    def letters(self) -> NDArray[np.int64]:
        """Class of the character at SLOTS places across every patch that a line's middle runs through.

        (H / 14, W / 14, SLOTS): 0 for a blank, 1 to 94 for printable ASCII; UNKNOWN for others, and off the lines.
        """
        rows, columns = (side // PATCH for side in self.pixels.shape)
        found = np.full((rows, columns * SLOTS), UNKNOWN)
        places = (np.arange(columns * SLOTS) + 0.5) * (PATCH / SLOTS)
        for line in self.lines:
            row = int(line.middle // PATCH)
            if row < rows:
                codes = np.array([ord(" "), *map(ord, line.text), ord(" ")]) - ord(" ")
                codes[(codes < 0) | (codes >= CLASSES)] = UNKNOWN
                found[row] = codes[np.searchsorted(line.edges, places, "right")]
        return found.reshape(rows, columns, SLOTS)

    def shares(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(cell, token id, share) of every token in every cell that it touches; a token's shares sum to 1.

        Cells are numbered row by row.
        """
        height, width = self.pixels.shape
        across, down = (_overlaps(self.boxes[:, axis::2], side) for axis, side in ((0, width), (1, height)))
        shares = down[:, :, None] * across[:, None]
        token, row, column = np.nonzero(shares > LEAST_SHARE)
        return row * (width // CELL) + column, self.ids[token], shares[token, row, column].astype(np.float32)


def _overlaps(spans: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Which share of each span lies in each cell along one side: (T, 2) -> (T, cells)."""
    edges = np.arange(side // CELL + 1) * CELL
    inside = np.clip(spans[:, 1:], edges[:-1], edges[1:]) - np.clip(spans[:, :1], edges[:-1], edges[1:])
    return inside / np.maximum(spans[:, 1:] - spans[:, :1], 1e-6)


def fonts(work: Path, names: Sequence[str]) -> list[Path]:
    """Paths of the fonts of these names that were fetched."""
    found = {path.stem: path for path in sorted((work / "debian").glob("fonts-*/**/*.[to]t[fc]"))}
    return [found[name] for name in names if name in found]


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(1 << 18)
def _advance(font: ImageFont.FreeTypeFont, pair: str) -> float:
    """How far a character moves the pen when another follows it."""
    return float(font.getlength(pair) - font.getlength(pair[1:]))


def _edges(line: str, font: ImageFont.FreeTypeFont) -> NDArray[np.float64]:
    """Where each character of a line begins, and where the last ends."""
    return np.cumsum([0.0, *(_advance(font, line[place : place + 2]) for place in range(len(line)))])


def random_look(choices: list[Path], random: np.random.Generator) -> Look:
    """Draw a look."""
    ink, paper = (0, 255) if random.random() > INVERTED else (int(random.integers(150, 256)), int(random.integers(80)))
    return Look(
        choices[random.integers(len(choices))],
        int(random.integers(SIZES[0], SIZES[1] + 1)),
        float(random.uniform(*SPACINGS)),
        *(int(random.integers(0, 20)) for _ in range(2)),
        ink,
        paper,
    )


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text into lines: at spaces, and anywhere in a word that is too long (or in Chinese and Japanese)."""
    lines, line = [], ""
    for word in text.split():
        for part in _parts(word, font, width):
            longer = f"{line} {part}" if line else part
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = part
            line = longer
    return [*lines, line] if line else lines


def _parts(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    parts = []
    while word and font.getlength(word) > width:
        count = max(1, int(len(word) * width / font.getlength(word)))
        parts.append(word[:count])
        word = word[count:]
    return [*parts, word] if word else parts


def draw(text: str, size: tuple[int, int], look: Look, tokenizer: Tokenizer) -> Drawn:
    """Set a text into an image of (height, width) from the top; what does not fit is left out. Newlines are kept."""
    height, width = size
    font, step = _font(look.font, look.size), look.size * look.spacing
    image = Image.new("L", (width, height), look.paper)
    canvas = ImageDraw.Draw(image)
    lines = [line for block in text.split("\n") for line in wrap(block, font, width - 2 * look.left) or [""]]
    lines = lines[: max(1, int((height - look.top) / step))]
    set_lines: list[Line] = []
    ids: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    for number, line in enumerate(lines):
        top = look.top + number * step
        base, edges = top + font.getmetrics()[0], look.left + _edges(line, font)
        set_lines.append(Line(line, base - MIDDLE * look.size, edges))
        canvas.text((look.left, top), line, fill=look.ink, font=font)
        encoded = tokenizer.encode(f" {line}", add_special_tokens=False)
        for one, (first, last) in zip(encoded.ids, encoded.offsets, strict=True):
            start, end = (edges[max(0, at - 1)] for at in (first, last))
            if end > start and line[max(0, first - 1) : last - 1].strip():
                ids.append(one)
                boxes.append((start, base - ABOVE * look.size, end, base + BELOW * look.size))
    return Drawn(np.asarray(image), set_lines, np.array(ids, np.int64), np.array(boxes, np.float64).reshape(-1, 4))
