"""The home of Pillow: bytes of the five formats, or a PIL image, to strips of RGB bytes.

Imported when an image comes, never before. Formats are opened by their own class, so that what else Pillow or a
plugin has registered is never asked. Pixels are what `convert("RGB")` of the original makes of them: alpha is dropped,
orientation and colour profiles are left alone, an animation is its first frame. Knows no limits: sizes are checked
before.
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
    """A JPEG whose EXIF is not parsed: it changes no pixel, and broken ones cost time and warnings."""

    def _read_dpi_from_exif(self) -> None:
        """Pillow's only use of EXIF on opening."""


STRIP_PIXELS = 1 << 19
"""Pixels that are converted at once."""
_OPENERS: dict[Format, Callable[[io.BytesIO], Image.Image]] = {
    Format.PNG: PngImagePlugin.PngImageFile,
    Format.JPEG: _Jpeg,
    Format.WEBP: WebPImagePlugin.WebPImageFile,
    Format.GIF: GifImagePlugin.GifImageFile,
    Format.BMP: BmpImagePlugin.BmpImageFile,
}
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Modes of 8 bits or less a channel that `convert("RGB")` shows as they are."""


def opened(data: bytes, kind: Format) -> Image.Image:
    """Open a file by its header, no pixel decoded. ImageError in our words for whatever the decoder says."""
    try:
        return _OPENERS[kind](io.BytesIO(jpeg.open_ended(data) if kind is Format.JPEG else data))
    except Exception:  # noqa: BLE001 - decoders raise what they like on broken files, and their texts are not for others
        raise unreadable(kind) from None


def loaded(image: Image.Image, data: bytes, kind: Format) -> Image.Image:
    """Decode the first frame of an opened file; ImageError if it is damaged or cut off."""
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
    """A PIL image of the caller's, its pixels loaded; ImageError for a closed one or for other modes."""
    if image.mode not in MODES:
        raise ImageError(f"mode {image.mode}: convert it to 8 bits, RGB or grey", index=0)
    try:
        image.load()
    except Exception:  # noqa: BLE001 - a file behind it that was closed, cut or replaced
        raise ImageError("the PIL image cannot be read: it is closed, damaged or cut off", index=0) from None
    return image


def strips(image: Image.Image) -> Iterator[Pixels]:
    """A loaded image as RGB, some rows at a time: yields (h, W, 3)."""
    width, height = image.size
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield _rgb(image.crop((0, top, width, min(height, top + step))))


def _rgb(image: Any) -> Pixels:  # noqa: ANN401 - a crop
    image.info.pop("transparency", None)  # dropped by the conversion anyway, with a warning
    return np.asarray(image.convert("RGB"))
