"""Images of requests: downloaded if that is allowed, measured, decoded in separate threads. Knows no HTTP.

Sizes are read from headers, and a request's pixels added up, before any pixel is decoded. Two threads decode, so that
at most two images of the largest size are held at once; downloads, which mostly wait, have threads of their own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from nestling.engine.protocol import Item
from nestling.errors import ImageError, ImageSizeError, UsageError
from nestling.inputs.image import Source, decode, open_base64, open_bytes
from nestling.inputs.image.download import Downloads
from nestling.models.embedder import Embedder
from nestling.models.vision import ImageItem, Vision
from nestling.server.core.requests import ImageUse, Picture

DECODERS, DOWNLOADS = 2, 8
MOST_PIXELS = 200_000_000
"""Most pixels of all images of a request together."""
Result = TypeVar("Result")
Given = TypeVar("Given")


def texts_of(values: Sequence[object]) -> list[str]:
    """The texts among them."""
    return [one for one in values if isinstance(one, str)]


def pictures_of(inputs: Sequence[object]) -> dict[int, Picture]:
    """The images among a request's inputs, by index."""
    return {place: one for place, one in enumerate(inputs) if isinstance(one, Picture)}


def use_of(items: Iterable[object]) -> ImageUse:
    """The number, tokens and pixels of the images among a request's items."""
    found = [(len(one), one.image) for one in items if isinstance(one, ImageItem) and one.image]
    return ImageUse(len(found), sum(tokens for tokens, _ in found), sum(image.sent_pixels for _, image in found))


class PictureReader:
    """Turns images of requests into items of a model."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._downloads = Downloads(hosts)
        self._decoders = ThreadPoolExecutor(DECODERS, "images")
        self._fetchers = ThreadPoolExecutor(DOWNLOADS, "downloads")

    async def items(self, pictures: Mapping[int, Picture], embedder: Embedder) -> dict[int, Item]:
        """The item of each; UsageError for a model without vision, ImageError with the index of a bad image."""
        vision = await _in(self._decoders, _vision_of, embedder, min(pictures))
        data = await _each(pictures, self._fetched)
        sources = await _each(data, lambda one: _in(self._decoders, _opened, one))
        _check_sum(sources)
        images = await _each(sources, lambda one: _in(self._decoders, decode, one, vision.spec))
        return dict(zip(images, vision.items(list(images.values())), strict=True))

    def close(self) -> None:
        """Shut down the threads; nothing more is started."""
        for threads in (self._decoders, self._fetchers):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _fetched(self, picture: Picture) -> str | bytes:
        if not picture.is_url:
            return picture.text
        if not self._downloads.hosts:
            raise ImageError("image: this server fetches no URLs; send base64 or a data URI", index=0)
        return await _in(self._fetchers, self._downloads.fetch, picture.text)


async def _in(threads: Executor, work: Callable[..., Result], *values: object) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *values)


async def _each(given: Mapping[int, Given], work: Callable[[Given], Awaitable[Result]]) -> dict[int, Result]:
    """The results by index, computed concurrently; an ImageError names the index of its image."""

    async def one(place: int) -> Result:
        try:
            return await work(given[place])
        except ImageError as error:
            raise error.at(place) from None

    tasks = [asyncio.ensure_future(one(place)) for place in given]
    try:
        return dict(zip(given, await asyncio.gather(*tasks), strict=True))
    finally:
        for task in tasks:
            task.cancel()


def _vision_of(embedder: Embedder, place: int) -> Vision:
    try:
        return embedder.vision
    except UsageError as error:
        raise ImageError(f"image: {error}", index=place) from None


def _opened(data: str | bytes) -> Source:
    return open_base64(data) if isinstance(data, str) else open_bytes(data)


def _check_sum(sources: Mapping[int, Source]) -> None:
    pixels = 0
    for place, source in sources.items():
        pixels += source.height * source.width
        if pixels > MOST_PIXELS:
            raise ImageSizeError(f"{pixels} pixels up to here; a request may have {MOST_PIXELS}", index=place)
