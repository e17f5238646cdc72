"""What an image becomes, whatever form it comes in. Bad input is in `tests/fault/test_image_faults.py`."""

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from tests.golden.patterns import gradient, noise
from tests.picture_files import frames, png, saved

from nestling.errors import ImageError
from nestling.formats.tower_shape import ImageSpec
from nestling.inputs.image import placed, read, smart_size

PIXELS = gradient(60, 80)


def _same(value: object, pixels: Any = PIXELS) -> bool:
    return np.array_equal(read(value).pixels, read(pixels).pixels)


def test_every_form_of_one_image_gives_the_same_pixels(tmp_path: Path) -> None:
    data = png(PIXELS)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = [data, bytearray(data), memoryview(data), path, str(path), uri, uri.upper()[:23] + uri[22:], PIXELS]
    forms = [*forms[:6], *forms[7:], PillowImage.fromarray(PIXELS), PillowImage.open(path)]
    assert all(_same(one) for one in forms)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_each_format_is_decoded_as_pillow_does(kind: str) -> None:
    data = saved(PIXELS, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert _same(data, _as_pillow(data))


def _as_pillow(data: bytes) -> Any:
    image = PillowImage.open(io.BytesIO(data))
    image.load()
    image.info.pop("transparency", None)  # Pillow warns that it is dropped
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_shown_as_convert_rgb_shows_them(mode: str) -> None:
    image = PillowImage.fromarray(noise(60, 80)).convert("RGBA").convert(mode)
    assert _same(image, np.asarray(image.convert("RGB")))
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = saved(image, kind)
    assert _same(data, _as_pillow(data))


def test_cmyk_with_adobes_marker_and_without_is_pillows() -> None:
    """Pillow, and so the original, takes the values of both as inverted, which is how Adobe writes them."""
    adobe = saved(PillowImage.fromarray(noise(60, 80)).convert("CMYK"), "JPEG")
    at = adobe.index(b"\xff\xee\x00\x0eAdobe")
    for data in (adobe, adobe[:at] + adobe[at + 16 :]):
        assert _same(data, _as_pillow(data))


def test_alpha_is_dropped_and_the_colour_beneath_shows() -> None:
    see_through = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert _same(png(see_through))
    assert _same(see_through)


def test_a_palette_with_transparency_is_its_palette() -> None:
    image = PillowImage.fromarray(PIXELS).convert("P")
    assert _same(saved(image, "PNG", transparency=bytes(range(256))), np.asarray(image.convert("RGB")))
    assert _same(saved(image, "GIF", transparency=3), np.asarray(image.convert("RGB")))
    image.info["transparency"] = bytes(range(256))
    assert _same(image, np.asarray(PillowImage.fromarray(PIXELS).convert("P").convert("RGB")))
    assert image.info == {"transparency": bytes(range(256))}, "a caller's image is left as it is"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_taken_as_they_are_stored(orientation: int) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    assert _same(saved(PIXELS, "PNG", exif=exif))
    plain, turned = saved(PIXELS, "JPEG"), saved(PIXELS, "JPEG", exif=exif)
    assert _same(turned, _as_pillow(plain))


def test_broken_exif_is_no_error() -> None:
    loop = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\x08\0\0\0\x08"
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", loop, b"\xff" * 60_000):
        assert _same(saved(PIXELS, "JPEG", exif=exif), _as_pillow(saved(PIXELS, "JPEG")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    assert _same(frames(5, kind), np.zeros((60, 60, 3), np.uint8))


def test_a_phones_double_picture_is_its_first() -> None:
    second = PillowImage.new("RGB", (80, 60), "white")
    both = saved(PIXELS, "MPO", save_all=True, append_images=[second])
    assert _same(both, _as_pillow(both))


def test_grey_arrays_are_grey_in_all_channels() -> None:
    grey = noise(60, 80)[:, :, 0]
    assert _same(grey, np.repeat(grey[:, :, None], 3, 2))
    assert _same(grey[::-1, ::2], np.repeat(grey[::-1, ::2, None], 3, 2)), "views too"


@pytest.mark.parametrize(
    ("size", "resized", "tokens"),
    [
        ((1, 1), (56, 56), 4),
        ((20, 20), (56, 56), 4),
        ((56, 56), (56, 56), 4),
        ((1, 200), (28, 812), 29),
        ((224, 224), (224, 224), 64),
        ((512, 512), (504, 504), 324),
        ((480, 640), (476, 644), 391),
        ((1000, 1000), (756, 756), 729),
        ((1754, 1240), (896, 644), 736),
        ((1080, 1920), (560, 1008), 720),
        ((1500, 2000), (672, 896), 768),
        ((3000, 4000), (672, 896), 768),
        ((70, 70), (56, 56), 4),
    ],
)
def test_the_size_is_the_originals(size: tuple[int, int], resized: tuple[int, int], tokens: int) -> None:
    assert smart_size(*size) == resized
    assert resized[0] * resized[1] // 784 == tokens


def test_max_pixels_makes_fewer_tokens() -> None:
    assert read(gradient(500, 500), max_pixels=64 * 784).tokens == 64
    assert read(gradient(500, 500), max_pixels=1).tokens == 1


def test_the_key_tells_images_apart() -> None:
    same, other = read(PIXELS).key, read(PIXELS[::-1]).key
    assert same == read(png(PIXELS)).key != other
    assert read(np.zeros((28, 112, 3), np.uint8)).key != read(np.zeros((112, 28, 3), np.uint8)).key


def test_the_prompt_has_a_token_for_each_row_and_positions_by_row_and_column() -> None:
    prompt = (10, 11, 12, 13, 99, 14, 15, 16, 17, 18, 19, 20)
    found = placed((4, 6), ImageSpec(prompt=prompt, image_token=99))
    assert found.ids.tolist() == [10, 11, 12, 13, *[99] * 6, 14, 15, 16, 17, 18, 19, 20]
    time, row, column = found.positions.tolist()
    assert time == [0, 1, 2, 3, *[4] * 6, 7, 8, 9, 10, 11, 12, 13]
    assert row == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9, 10, 11, 12, 13]
    assert column == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert (found.image, found.pooled) == (slice(4, 10), slice(3, 11))


def test_an_image_without_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(Exception, match=r"an image needs PIL .*pip install 'nestling\[images\]'"):
        read(png())
    assert _same(PIXELS), "arrays need no decoder"


def test_texts_alone_never_import_pillow() -> None:
    script = "import sys, nestling.models.embedder, nestling.inputs.image; sys.exit('PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_generator_or_a_number_is_no_image() -> None:
    with pytest.raises(ImageError, match="expected a path, bytes, a PIL image or a numpy array, not int"):
        read(3)
