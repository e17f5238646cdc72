"""The images' way into a text model: the vision tower beside it, and images to items for its engine.

A tower belongs to a checkpoint, not to a task: models of all tasks share one in memory. Knows where the file lies and
what the model's tokenizer makes of the prompt around an image; not how images are decoded, nor how engines run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from nestling.engine.protocol import Item, Rows, TokenIds, plain
from nestling.engine.registry import EngineName
from nestling.engine.towers import load_tower
from nestling.engine.vision import VisionEngine
from nestling.errors import FileFormatError, ImageError, TextError, UsageError
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import IMAGE_TOKEN, PROMPT, ImageSpec
from nestling.inputs.image import Image, is_image, placed, read_all
from nestling.inputs.image.patches import PATCH
from nestling.inputs.image.resize import FACTOR
from nestling.inputs.tokenizer import Tokenizer
from nestling.models import content
from nestling.models.towers import tower_of
from nestling.spec import ModelSpec

TOGETHER = 3072
"""Patches of images that go through the tower at once: one image of the largest size."""


@dataclass(frozen=True, slots=True)
class TowerOptions:
    """How a tower is loaded: with so many threads (all usable processors by default), in float32 if `exact`."""

    threads: int | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower for one text model; `spec` has the prompt in that model's ids, `limit` its most tokens."""

    tower: VisionEngine
    spec: ImageSpec
    limit: int

    @classmethod
    def beside(cls, model: Path, spec: ModelSpec, tokenizer: Tokenizer, *, engine: str, options: TowerOptions) -> Self:
        """The tower that lies beside a model's file, or in its family's folder.

        UsageError when there is none or the engine has no vision, FileFormatError when it is of another checkpoint.
        """
        file = VisionFile.open(content.check(tower_of(model, spec)))
        file.check_fits(width=spec.dimensions[-1], source=spec.source)
        if file.shape.patch != PATCH:
            raise FileFormatError(f"{file.file.path}: clip.vision.patch_size={file.shape.patch}: expected {PATCH}")
        filled = _with_prompt(file.spec, tokenizer, file.file.path)
        tower = load_tower(file, name=EngineName.parse(engine), threads=options.threads, exact=options.exact)
        return cls(tower, filled, spec.max_tokens)

    def read(self, values: Iterable[object], *, max_pixels: int | None = None) -> Iterator[Image]:
        """Decode and resize what a caller gave, one after another; ImageError naming the place in the list.

        `max_pixels` None or 0 is the checkpoint's own.
        """
        least = FACTOR**2
        if max_pixels is not None and (type(max_pixels) is not int or 0 < max_pixels < least or max_pixels < 0):
            raise UsageError(f"max_pixels={max_pixels!r}: expected a whole number from {least}", param="max_pixels")
        for index, image in enumerate(read_all(values, self.spec, max_pixels=max_pixels)):
            if (count := self.tokens(image)) > self.limit:
                raise ImageError(f"{count} tokens, this model takes {self.limit}; lower max_pixels", index=index)
            yield image

    def grouped(self, values: Iterable[object], *, max_pixels: int | None = None) -> Iterator[list[Item]]:
        """Images of any number as items, a few at a time, so that the pixels of all are never held."""
        group, patches = list[Image](), 0
        for image in self.read(values, max_pixels=max_pixels):
            group.append(image)
            patches += image.grid[0] * image.grid[1]
            if patches >= TOGETHER:
                yield self.items(group)
                group, patches = [], 0
        if group:
            yield self.items(group)

    def items(self, images: Sequence[Image]) -> list[Item]:
        """Images as the model's input: prompt, M-RoPE positions, which tokens are pooled; the tower runs later."""
        return [self._item(image) for image in images]

    def _item(self, image: Image) -> "ImageItem":
        place = placed(image.grid, self.spec)
        none_yet = Rows(place.image, np.empty((image.tokens, 0), np.float32))
        return ImageItem(place.ids, place.positions, none_yet, image.key, place.pooled, image, self)

    def completed(self, items: Sequence["ImageItem"]) -> list[Item]:
        """The same with the tower's rows in the places of the image, all images in one run."""
        images = [item.image for item in items if item.image]
        found = self.tower.rows([one.patches(self.spec) for one in images], [one.grid for one in images])
        assert len(found) == len(items)
        return [
            Item(item.ids, item.positions, Rows(item.rows.places, rows), item.key, item.pooled)
            for item, rows in zip(items, found, strict=True)
            if item.rows
        ]

    def tokens(self, image: Image) -> int:
        """Tokens of an image's item."""
        return image.tokens + len(self.spec.prompt) - 1


@dataclass(frozen=True, slots=True, eq=False)
class ImageItem(Item):
    """An image that waits for its turn: small, since its rows are computed then; no engine takes it before."""

    image: Image | None = None
    vision: Vision | None = None

    @property
    def work(self) -> int:
        """What it takes in tokens of text: the tower's part is about that of as many tokens as it has rows."""
        return len(self) + (self.image.tokens if self.image else 0)


def completed(items: Sequence[Item]) -> list[Item]:
    """Items that an engine takes: images of one tower go through it together."""
    towers = {id(item.vision): item.vision for item in items if isinstance(item, ImageItem) and item.vision}
    found = list(items)
    for tower in towers.values():
        places = [place for place, item in enumerate(items) if isinstance(item, ImageItem) and item.vision is tower]
        done = tower.completed([item for item in items if isinstance(item, ImageItem) and item.vision is tower])
        for place, item in zip(places, done, strict=True):
            found[place] = item
    return found


def _with_prompt(spec: ImageSpec, tokenizer: Tokenizer, path: Path) -> ImageSpec:
    """The spec with the ids of its prompt, which a published file does not say; FileFormatError for another's ids."""
    [found], [token] = tokenizer.encode([PROMPT]), tokenizer.encode([IMAGE_TOKEN])
    prompt, image_token = tuple(found.tolist()), int(token[0])
    if len(token) != 1 or prompt.count(image_token) != 1:
        raise FileFormatError(f"{path}: the text model beside it has no token {IMAGE_TOKEN}")
    if spec.prompt and (spec.prompt, spec.image_token) != (prompt, image_token):
        raise FileFormatError(f"{path}: nestling.vision.prompt: not the ids that the text model's tokenizer gives")
    return replace(spec, prompt=prompt, image_token=image_token)


def mixed(
    values: Sequence[object], *, tokenize: Callable[[list[str]], list[TokenIds]], vision: Callable[[], Vision]
) -> list[Item]:
    """Images (but no str) and texts (everything else) as items in their order; an InputError names the place."""
    images = {place: value for place, value in enumerate(values) if is_image(value)}
    texts: dict[int, Any] = {place: value for place, value in enumerate(values) if place not in images}
    try:
        found = dict(zip(texts, plain(tokenize(list(texts.values()))), strict=True))
        if images:
            tower = vision()
            found |= zip(images, tower.items(list(tower.read(images.values()))), strict=True)
    except TextError as error:
        raise error.at(list(texts)[error.index]) from None
    except ImageError as error:
        raise error.at(list(images)[error.index]) from None
    return [found[place] for place in range(len(values))]
