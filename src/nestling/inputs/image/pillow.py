"""Decoding with Pillow, the only module that imports it: files of five formats, or PIL images, to strips of RGB rows.

Imported when the first image is read. Each format is opened by its own class, so that no other decoder of Pillow or of
its plugins is reachable. Pixels are those of `convert("RGB")`, as in the original model: alpha is dropped, orientation
and colour profiles are ignored, an animation is its first frame. Size limits are checked by the caller.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from nestling.errors import ImageError
from nestling.inputs.image import jpeg, png
from nestling.inputs.image.header import Format, unreadable
from nestling.inputs.image.resize import Pixels


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF data is not parsed: it does not change pixels, and damaged EXIF costs time and warnings."""

    def _read_dpi_from_exif(self) -> None:
        """Skip the only parsing of EXIF that Pillow does on opening."""


STRIP_PIXELS = 1 << 19
"""Pixels that are converted together."""
_OPENERS: dict[Format, Callable[[io.BytesIO], Image.Image]] = {
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.JPEG: _Jpeg,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.BMP: BmpImagePlugin.BmpImageFile,
}
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Modes of at most 8 bits per channel, which `convert("RGB")` does not distort."""


def opened(data: bytes, kind: Format) -> Image.Image:
    """Open a file without decoding pixels; any error of the decoder becomes an ImageError."""
    try:
        return _OPENERS[kind](io.BytesIO(jpeg.open_ended(data) if kind is Format.JPEG else data))
    except Exception:  # noqa: BLE001 - decoders raise any exception on damaged files; their messages are not shown
        raise unreadable(kind) from None


def loaded(image: Image.Image, data: bytes, kind: Format) -> Image.Image:
    """Decode the first frame of an opened file; ImageError if it is damaged or truncated."""
    try:
        if kind is Format.PNG:
            png.check_rows(data)
        image.load()
    except Exception:  # noqa: BLE001 - as above
        raise unreadable(kind) from None
    return image


def is_image(value: object) -> bool:
    """True for a PIL image."""
    return isinstance(value, Image.Image)


def checked(image: Image.Image) -> Image.Image:
    """Load the pixels of the caller's PIL image; ImageError for a closed image or an unsupported mode."""
    if image.mode not in MODES:
        raise ImageError(f"mode {image.mode}: convert it to 8 bits, RGB or grey", index=0)
    try:
        image.load()
    except Exception:  # noqa: BLE001 - the file behind it may be closed, truncated or replaced
        raise ImageError("the PIL image cannot be read: it is closed, damaged or truncated", index=0) from None
    return image


def strips(image: Image.Image) -> Iterator[Pixels]:
    """A loaded image as RGB, in strips of h rows: yields (h, W, 3) uint8."""
    width, height = image.size
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield _rgb(image.crop((0, top, width, min(height, top + step))))


def _rgb(image: Any) -> Pixels:  # noqa: ANN401 - a crop
    image.info.pop("transparency", None)  # the conversion drops it too, but warns
    return np.asarray(image.convert("RGB"))
