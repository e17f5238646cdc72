"""Images: decode, resize, cut into patches, place among tokens; the same results as the original model's processor.

    image = read("page.png", spec)      # Image: resized pixels, grid, tokens
    image.patches(spec)                 # input of the vision tower
    placed(image.grid, spec)            # ids and M-RoPE positions

Importing this package does not import Pillow, which only decodes.
"""

from collections.abc import Iterable, Iterator

from nestling.errors import ImageError
from nestling.formats.tower_shape import ImageSpec
from nestling.inputs.image.patches import Image, Placed, placed
from nestling.inputs.image.resize import resized, smart_size
from nestling.inputs.image.source import (
    LIMITS,
    ImageLike,
    Limits,
    Source,
    is_image,
    is_path,
    open_any,
    open_base64,
    open_bytes,
    read_file,
)

__all__ = [
    "LIMITS",
    "Image",
    "ImageLike",
    "Limits",
    "Placed",
    "Source",
    "decode",
    "is_image",
    "is_path",
    "open_any",
    "open_base64",
    "open_bytes",
    "placed",
    "read",
    "read_all",
    "read_file",
    "smart_size",
]
PUBLISHED = ImageSpec()
"""The specification of jina-embeddings-v4, without the token ids of its prompt."""


def decode(source: Source, spec: ImageSpec = PUBLISHED, *, max_pixels: int | None = None) -> Image:
    """Decode and resize to at most `max_pixels` (default: the specification's).

    ImageError for damaged pixels, or for one side more than 200 times the other.
    """
    most = max_pixels or spec.max_pixels
    to = smart_size(source.height, source.width, min_pixels=spec.min_pixels, max_pixels=most)
    size = source.height, source.width
    return Image.of(resized(source.strips(), size, to), sent_pixels=size[0] * size[1])


def read(
    value: object, spec: ImageSpec = PUBLISHED, *, limits: Limits = LIMITS, max_pixels: int | None = None
) -> Image:
    """Read a path, a file's bytes, a data URI, a PIL image or a uint8 array; ImageError for anything else."""
    return decode(open_any(value, limits=limits), spec, max_pixels=max_pixels)


def read_all(
    values: Iterable[object], spec: ImageSpec = PUBLISHED, *, limits: Limits = LIMITS, max_pixels: int | None = None
) -> Iterator[Image]:
    """`read` each in turn; an ImageError carries the index of its image."""
    for index, value in enumerate(values):
        try:
            yield read(value, spec, limits=limits, max_pixels=max_pixels)
        except ImageError as error:
            raise error.at(index) from None
