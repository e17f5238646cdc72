"""Images for a text model: load its vision tower, and convert images to items for its engine.

A tower belongs to a checkpoint, not to a task, so models of all tasks share one in memory. Knows where the file is and
the token ids of the prompt around an image; does not know how images are decoded or how engines run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from nestling.engine.names import EngineName
from nestling.engine.protocol import Item, Rows, TokenIds, plain
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
"""The most patches in one run of the tower: one image of the largest size."""


@dataclass(frozen=True, slots=True)
class TowerOptions:
    """How a tower is loaded: on the text engine's `device`, `threads` (all by default), in float32 if `exact`."""

    device: str | None = None
    threads: int | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower for one text model: `spec` has the prompt in that model's ids, `limit` is its `max_tokens`."""

    tower: VisionEngine
    spec: ImageSpec
    limit: int

    @classmethod
    def load(cls, model: Path, spec: ModelSpec, tokenizer: Tokenizer, *, engine: str, options: TowerOptions) -> Self:
        """Load the vision tower of a model's file: from the file's folder, or from its family's folder.

        UsageError when there is none or the engine has no vision, FileFormatError when it is of another checkpoint.
        """
        file = VisionFile.open(content.check(tower_of(model, spec)))
        file.check_fits(width=spec.dimensions[-1], source=spec.source)
        if file.shape.patch != PATCH:
            raise FileFormatError(f"{file.file.path}: clip.vision.patch_size={file.shape.patch}: expected {PATCH}")
        filled = _with_prompt(file.spec, tokenizer, file.file.path)
        name = EngineName.parse(engine)
        tower = load_tower(file, name=name, device=options.device, threads=options.threads, exact=options.exact)
        return cls(tower, filled, spec.max_tokens)

    def read(self, values: Iterable[object], *, max_pixels: int | None = None) -> Iterator[Image]:
        """Decode and resize images, one after another; an ImageError carries the index of its image.

        `max_pixels` None or 0 means the checkpoint's limit.
        """
        least = FACTOR**2
        if max_pixels is not None and (type(max_pixels) is not int or 0 < max_pixels < least or max_pixels < 0):
            raise UsageError(f"max_pixels={max_pixels!r}: expected an integer from {least}", param="max_pixels")
        for index, image in enumerate(read_all(values, self.spec, max_pixels=max_pixels)):
            if (count := self.tokens(image)) > self.limit:
                raise ImageError(f"{count} tokens, this model takes {self.limit}; lower max_pixels", index=index)
            yield image

    def grouped(self, values: Iterable[object], *, max_pixels: int | None = None) -> Iterator[list[Item]]:
        """Convert any number of images to items, in groups, so that only a few images are in memory."""
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
        """Convert images to items: prompt ids, M-RoPE positions, pooled tokens; the tower runs later."""
        return [self._item(image) for image in images]

    def _item(self, image: Image) -> "ImageItem":
        place = placed(image.grid, self.spec)
        none_yet = Rows(place.image, np.empty((image.tokens, 0), np.float32))
        return ImageItem(place.ids, place.positions, none_yet, image.key, place.pooled, image, self)

    def completed(self, items: Sequence["ImageItem"]) -> list[Item]:
        """Run the tower over all images at once and put its rows into the items."""
        images = [item.image for item in items if item.image]
        found = self.tower.rows([one.patches(self.spec) for one in images], [one.grid for one in images])
        assert len(found) == len(items)
        return [
            Item(item.ids, item.positions, Rows(item.rows.places, rows), item.key, item.pooled)
            for item, rows in zip(items, found, strict=True)
            if item.rows
        ]

    def tokens(self, image: Image) -> int:
        """The number of tokens of an image's item."""
        return image.tokens + len(self.spec.prompt) - 1


@dataclass(frozen=True, slots=True, eq=False)
class ImageItem(Item):
    """An image before its vision tower has run, so that it needs little memory in a queue; see `completed`."""

    image: Image | None = None
    vision: Vision | None = None

    @property
    def work(self) -> int:
        """Estimated cost in text tokens: the tower costs about as much as one token per row."""
        return len(self) + (self.image.tokens if self.image else 0)


def completed(items: Sequence[Item]) -> list[Item]:
    """Items ready for an engine: the images of each tower are run together."""
    towers = {id(item.vision): item.vision for item in items if isinstance(item, ImageItem) and item.vision}
    found = list(items)
    for tower in towers.values():
        places = [place for place, item in enumerate(items) if isinstance(item, ImageItem) and item.vision is tower]
        done = tower.completed([item for item in items if isinstance(item, ImageItem) and item.vision is tower])
        for place, item in zip(places, done, strict=True):
            found[place] = item
    return found


def _with_prompt(spec: ImageSpec, tokenizer: Tokenizer, path: Path) -> ImageSpec:
    """The spec with the prompt's ids, which published files lack; FileFormatError if they differ from the model's."""
    [found], [token] = tokenizer.encode([PROMPT]), tokenizer.encode([IMAGE_TOKEN])
    prompt, image_token = tuple(found.tolist()), int(token[0])
    if len(token) != 1 or prompt.count(image_token) != 1:
        raise FileFormatError(f"{path}: the text model has no token {IMAGE_TOKEN}")
    if spec.prompt and (spec.prompt, spec.image_token) != (prompt, image_token):
        raise FileFormatError(f"{path}: nestling.vision.prompt: expected the ids of the text model's tokenizer")
    return replace(spec, prompt=prompt, image_token=image_token)


def mixed(
    values: Sequence[object], *, tokenize: Callable[[list[str]], list[TokenIds]], vision: Callable[[], Vision]
) -> list[Item]:
    """Convert images and texts (every str, and values that are not images) to items; an InputError has the index."""
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
