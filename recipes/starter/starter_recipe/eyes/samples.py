"""Batches for the eyes: pictures with their names, and texts as images; all that is random comes from a generator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from starter_recipe.eyes.pictures import LANGUAGES
from starter_recipe.eyes.typeset import CJK, LATIN, Drawn, draw, fonts, random_look

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

ICON_SHARE = 0.1
SHARE_CJK = 0.05
WHITE_SHARE, GREY_SHARE = 0.7, 0.1
"""Of pictures: on white, and without colour."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """Pixels (B, S, S, 3) and the number of each picture's concept."""

    pixels: Tensor
    concepts: Tensor


class Pictures:
    """Emoji, flags, icons and shapes. Concepts below `emoji` have a name in every language, the others in English."""

    def __init__(self, work: Path) -> None:
        record = json.loads((work / "pictures.json").read_text("utf-8"))
        self.pixels = np.load(work / "pictures.npy", mmap_mode="r")
        order = sorted(range(len(record["names"])), key=lambda one: len(record["names"][one]) == 1)
        rank = np.argsort(order)
        self.names: list[dict[str, str]] = [record["names"][one] for one in order]
        self.concepts = rank[record["concepts"]]
        self.emoji = sum(len(names) == len(LANGUAGES) for names in self.names)
        self._groups = [np.flatnonzero(self.concepts < self.emoji), np.flatnonzero(self.concepts >= self.emoji)]

    def batch(self, count: int, side: int, random: np.random.Generator) -> PictureBatch:
        """Draw pictures at random, moved, scaled and recoloured at random, of `side` pixels along each side."""
        icons = random.random(count) < ICON_SHARE
        chosen = [int(random.choice(self._groups[int(icon)])) for icon in icons]
        pixels = np.stack([placed(self.pixels[one], side, random) for one in chosen])
        return PictureBatch(torch.from_numpy(pixels), torch.from_numpy(self.concepts[chosen]))


def placed(picture: Pixels, side: int, random: np.random.Generator) -> Pixels:
    """Put a picture with alpha on a plain background, at a random size, place and brightness: -> (side, side, 3)."""
    paper = 255 if random.random() < WHITE_SHARE else random.integers(0, 256, 3)
    inner = int(side * random.uniform(0.7, 1.0))
    image = np.asarray(Image.fromarray(picture).resize((inner, inner), Image.Resampling.BICUBIC), np.float32)
    top, left = (int(random.integers(0, side - inner + 1)) for _ in range(2))
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = paper
    alpha = image[..., 3:] / 255
    colours = image[..., :3] * random.uniform(0.8, 1.15) + random.uniform(-15, 15, 3)
    if random.random() < GREY_SHARE:
        colours = np.repeat(colours.mean(-1, keepdims=True), 3, -1)
    window = canvas[top : top + inner, left : left + inner]
    window[:] = window * (1 - alpha) + colours * alpha
    return np.clip(canvas, 0, 255).astype(np.uint8)


class Texts:
    """Texts of the text tower's training rows (`rows.jsonl`), joined to fill an image."""

    def __init__(self, rows: Path, work: Path, tokenizer: Tokenizer) -> None:
        with rows.open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        self._texts = {
            cjk: [text for text, _, _, language in records if (language in {"zh", "ja"}) is cjk]
            for cjk in (False, True)
        }
        self._fonts = {False: fonts(work, LATIN), True: fonts(work, CJK)}
        self._tokenizer = tokenizer

    def drawn(self, size: tuple[int, int], random: np.random.Generator) -> Drawn:
        """Fill an image of (height, width) with texts of one script."""
        cjk = bool(random.random() < SHARE_CJK)
        texts, wanted = self._texts[cjk], size[0] * size[1] // 160
        parts: list[str] = []
        while sum(map(len, parts)) < wanted:
            parts.append(texts[random.integers(len(texts))][: min(400, 2 * wanted)])
        return draw("\n".join(parts), size, random_look(self._fonts[cjk], random), self._tokenizer)

    def batch(self, count: int, size: tuple[int, int], random: np.random.Generator) -> list[Drawn]:
        """Draw several images of one size."""
        return [self.drawn(size, random) for _ in range(count)]


def as_colour(images: list[Drawn]) -> Tensor:
    """Grey images as (B, H, W, 3)."""
    return torch.from_numpy(np.stack([one.pixels for one in images]))[..., None].expand(-1, -1, -1, 3)
