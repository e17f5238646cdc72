"""Plain shapes in colours, lines, charts and tables, drawn at random, each with an English description."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SEED, SIDE, SCALE = 8, 84, 4
COPIES = 12
COLOURS = {
    "red": (220, 20, 20), "green": (20, 140, 40), "blue": (30, 60, 220), "yellow": (245, 215, 20),
    "orange": (245, 140, 20), "purple": (130, 40, 160), "pink": (245, 130, 180), "brown": (130, 80, 40),
    "black": (0, 0, 0), "grey": (130, 130, 130), "turquoise": (40, 190, 190),
}  # fmt: skip
CURVES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "a line that rises": lambda x: x,
    "a line that falls": lambda x: 1 - x,
    "a flat line": lambda x: 0.5 + 0 * x,
    "a curve with a peak in the middle": lambda x: 1 - (2 * x - 1) ** 2,
    "a curve with a dip in the middle": lambda x: (2 * x - 1) ** 2,
    "a wave": lambda x: 0.5 + 0.5 * np.sin(4 * np.pi * x),
    "a curve that rises faster and faster": lambda x: x**3,
}
Canvas = ImageDraw.ImageDraw
Random = np.random.Generator
Colour = tuple[int, int, int]


def _polygon(corners: int, turn: float, inner: float = 1.0) -> Callable[[Canvas, tuple[float, ...], Colour], None]:
    """A regular polygon, or a star whose inner corners are nearer to the centre."""

    def draw(canvas: Canvas, box: tuple[float, ...], colour: Colour) -> None:
        x, y, radius = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2
        count = corners if inner == 1 else 2 * corners
        angles = turn + 2 * np.pi * np.arange(count) / count
        radii = radius * np.where(np.arange(count) % 2, inner, 1)
        canvas.polygon(list(zip(x + radii * np.sin(angles), y - radii * np.cos(angles), strict=True)), fill=colour)

    return draw


SHAPES: dict[str, Callable[[Canvas, tuple[float, ...], Colour], None]] = {
    "disc": lambda canvas, box, colour: canvas.ellipse(box, fill=colour),
    "ring": lambda canvas, box, colour: canvas.ellipse(box, outline=colour, width=7 * SCALE),
    "square": lambda canvas, box, colour: canvas.rectangle(box, fill=colour),
    "field": lambda canvas, box, colour: canvas.rectangle((0, box[1], SIDE * SCALE, SIDE * SCALE), fill=colour),
    "bar": lambda canvas, box, colour: canvas.rectangle((box[0], box[1] + 24 * SCALE, box[2], box[3]), fill=colour),
    "triangle": _polygon(3, 0.0),
    "diamond": _polygon(4, 0.0),
    "hexagon": _polygon(6, 0.0),
    "star": _polygon(5, 0.0, 0.4),
    "cross": lambda canvas, box, colour: _cross(canvas, box, colour),
}


def _cross(canvas: Canvas, box: tuple[float, ...], colour: Colour) -> None:
    third = (box[2] - box[0]) / 3
    canvas.rectangle((box[0] + third, box[1], box[2] - third, box[3]), fill=colour)
    canvas.rectangle((box[0], box[1] + third, box[2], box[3] - third), fill=colour)


def _shaded(colour: Colour, random: Random) -> Colour:
    red, green, blue = np.clip(np.array(colour) + random.integers(-20, 21, 3), 0, 255).tolist()
    return red, green, blue


def _box(random: Random) -> tuple[float, ...]:
    side = SIDE * SCALE * random.uniform(0.4, 0.8)
    left, top = random.uniform(0, SIDE * SCALE - side, 2)
    return left, top, left + side, top + side


def _curve(canvas: Canvas, shape: NDArray[np.float64], colour: Colour, random: Random) -> None:
    """Draw heights between 0 and 1 from left to right, with a little noise."""
    heights = np.clip(shape + random.normal(0, 0.04, len(shape)), 0, 1)
    x = np.linspace(0.1, 0.9, len(shape)) * SIDE * SCALE
    y = (0.9 - 0.8 * heights) * SIDE * SCALE
    canvas.line(list(zip(x, y, strict=True)), fill=colour, width=int(random.integers(2, 5)) * SCALE)


def _bars(canvas: Canvas, heights: NDArray[np.float64], colour: Colour) -> None:
    wide = 0.8 * SIDE * SCALE / len(heights)
    for place, height in enumerate(0.1 + 0.7 * heights):
        left = 0.1 * SIDE * SCALE + place * wide
        box = (left, (0.9 - height) * SIDE * SCALE, left + 0.7 * wide, 0.9 * SIDE * SCALE)
        canvas.rectangle(box, fill=colour)


def _pie(canvas: Canvas, colours: list[Colour], random: Random) -> None:
    ends = np.concatenate(([0], np.cumsum(random.dirichlet(np.full(len(colours), 3.0))))) * 360
    for first, last, colour in zip(ends[:-1], ends[1:], colours, strict=True):
        canvas.pieslice((8 * SCALE, 8 * SCALE, 76 * SCALE, 76 * SCALE), first, last, fill=colour)


def _table(canvas: Canvas, rows: int, columns: int) -> None:
    edges = [np.linspace(0.1, 0.9, count + 1) * SIDE * SCALE for count in (rows, columns)]
    for y in edges[0]:
        canvas.line((edges[1][0], y, edges[1][-1], y), fill="black", width=SCALE)
    for x in edges[1]:
        canvas.line((x, edges[0][0], x, edges[0][-1]), fill="black", width=SCALE)


def _scatter(canvas: Canvas, colour: Colour, random: Random) -> None:
    for x, y in random.uniform(0.1, 0.9, (25, 2)) * SIDE * SCALE:
        canvas.ellipse((x, y, x + 4 * SCALE, y + 4 * SCALE), fill=colour)


def _one_of_each(canvas_of: Callable[[str], Canvas], random: Random) -> None:
    """Draw every description once, each on a canvas of its own."""
    colours = list(COLOURS.values())
    for colour, rgb in COLOURS.items():
        for shape, draw in SHAPES.items():
            article = "an" if colour[0] in "aeiou" else "a"
            draw(canvas_of(f"{article} {colour} {shape}"), _box(random), _shaded(rgb, random))
    for name, curve in CURVES.items():
        count = int(random.integers(4, 20))
        _curve(canvas_of(name), curve(np.linspace(0, 1, count)), colours[random.integers(len(colours))], random)
    rising = np.sort(random.uniform(0, 1, random.integers(4, 9)))
    for name, heights in (("rising", rising), ("falling", rising[::-1])):
        _bars(canvas_of(f"a bar chart with {name} bars"), heights, colours[random.integers(len(colours))])
    _pie(canvas_of("a pie chart"), [colours[one] for one in random.permutation(len(colours))[:4]], random)
    _table(canvas_of("an empty table"), int(random.integers(3, 8)), int(random.integers(2, 6)))
    _scatter(canvas_of("a scatter plot"), colours[random.integers(len(colours))], random)


def shape_pictures() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Descriptions with pictures (84, 84, 4): `COPIES` of each, all different."""
    random = np.random.default_rng(SEED)
    for _ in range(COPIES):
        found: dict[str, Image.Image] = {}

        def canvas_of(name: str, found: dict[str, Image.Image] = found) -> Canvas:
            found[name] = Image.new("RGBA", (SIDE * SCALE, SIDE * SCALE))
            return ImageDraw.Draw(found[name])

        _one_of_each(canvas_of, random)
        yield from ((name, np.asarray(one.reduce(SCALE))) for name, one in found.items())
