"""Bad images: each is refused in one line of our own words, or is what it should be; never a crash, never a stand-in.

The doors: bytes, data URIs and bare base64, paths, PIL images, arrays (here, through `inputs.image`); requests to the
server (`tests/contract/test_image_requests.py`); the command line (`tests/unit/test_cli_images.py`). Memory and time
under 100,000 mutated files: `benchmarks/image_fuzz.py`, of which a short run is here.
"""

import base64
import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFile, features
from tests.golden.patterns import gradient, noise
from tests.picture_files import chunk, frames, png, raw_png, saved, with_frame_size

from nestling.errors import ImageError, ImageSizeError
from nestling.inputs.image import Limits, decode, open_base64, read
from nestling.inputs.image.header import read_header
from nestling.inputs.image.source import decoded_base64, read_file

PIXELS = gradient(60, 80)
TARGETS = {"png": png(PIXELS), "jpeg": saved(noise(60, 80), "JPEG"), "webp": saved(PIXELS, "WEBP", lossless=True)}
TARGETS |= {"gif": saved(PIXELS, "GIF"), "bmp": saved(PIXELS, "BMP"), "lossy": saved(PIXELS, "WEBP")}


def _refusal(value: Any, kind: type[ImageError] = ImageError) -> str:
    with pytest.raises(kind) as caught:
        read(value)
    assert "\n" not in str(caught.value)
    assert "at 0x" not in str(caught.value), "no address of the memory"
    return caught.value.reason


NO_IMAGES = {
    b"": "empty",
    b"<!DOCTYPE html><html><body>404</body></html>": "this is HTML",
    b"PK\x03\x04" + bytes(60): "this is a zip archive",
    b"%PDF-1.7\n": "this is a PDF (render its pages first: pdftoppm -png)",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n": "this is PostScript",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>": "this is SVG",
    b"II*\x00" + bytes(60): "this is a TIFF",
    b"8BPS\0\1" + bytes(60): "this is a PSD",
    b"\x00\x00\x01\x00\x01\x00" + bytes(60): "this is an icon",
    b"SIMPLE  =                    T": "this is a FITS file",
    bytes(range(7, 200)): "cannot be read as an image",
}


@pytest.mark.parametrize("data", NO_IMAGES, ids=lambda data: repr(data[:8]))
def test_what_is_no_image_is_named(data: bytes) -> None:
    assert NO_IMAGES[data] in _refusal(data)
    assert "PNG, JPEG, WEBP, GIF, BMP" in _refusal(data)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA", "PCX", "DIB", "JPEG2000", "ICNS", "EPS", "PDF"])
def test_other_formats_of_pillow_are_never_opened(kind: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow cannot write it")
    assert "PNG, JPEG, WEBP, GIF, BMP" in _refusal(saved(noise(64, 64), kind))


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_that_is_cut_off_is_never_filled_up(name: str) -> None:
    data = TARGETS[name]
    for stop in {1, 10, 30, len(data) // 4, len(data) // 2, len(data) * 9 // 10}:
        assert "cannot be read as an image" in _refusal(data[:stop])


@pytest.mark.parametrize("more", [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("size", [(60, 80), (64, 64), (300, 7), (1, 1), (333, 501)])
def test_a_jpeg_that_was_cut_and_closed_again_is_never_filled_up(size: tuple[int, int], more: dict[str, Any]) -> None:
    pixels = noise(*size)
    whole = saved(pixels, "JPEG", **more)
    assert np.array_equal(read(whole).pixels, read(np.asarray(PillowImage.open(io.BytesIO(whole)))).pixels)
    if size == (1, 1):
        return
    start = whole.index(b"\xff\xda") + 14
    for part in (0.3, 0.9):
        cut = whole[: start + int((len(whole) - start) * part)].rstrip(b"\xff") + b"\xff\xd9"
        assert "JPEG is damaged" in _refusal(cut)


def test_a_png_whose_checksum_is_wrong_is_damaged() -> None:
    data = png(PIXELS, pnginfo=None)
    places = [data.index(kind) for kind in (b"IHDR", b"IDAT", b"IEND")]
    for place in places:
        broken = bytearray(data)
        broken[place + 4 + int.from_bytes(data[place - 4 : place], "big")] ^= 1
        assert _refusal(bytes(broken)) == "cannot be read as an image: the PNG is damaged or truncated"


def test_a_png_with_too_few_rows_or_none_is_damaged() -> None:
    whole = b"".join(b"\0" + bytes(80) for _ in range(60))
    read(raw_png(80, 60, whole))
    for rows in (b"", whole[:-81], whole[:100], whole[: 81 * 30]):
        assert "PNG is damaged" in _refusal(raw_png(80, 60, rows))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (60, 80), (3, 200)])
def test_an_interlaced_png_is_read_whole_or_not_at_all(size: tuple[int, int]) -> None:
    rows, columns = size
    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    pixels = noise(rows, columns)[:, :, 0]
    passes = [pixels[top::down, left::across] for left, top, across, down in adam7]
    body = b"".join(b"\0" + row.tobytes() for one in passes if one.size for row in one)
    assert np.array_equal(read(raw_png(columns, rows, body, interlaced=1)).pixels, read(pixels).pixels)
    assert "PNG is damaged" in _refusal(raw_png(columns, rows, body[:-1], interlaced=1))


def test_a_png_that_cannot_hold_its_pixels_is_refused_before_it_is_decoded() -> None:
    data = raw_png(7000, 7000, bytes(7001))
    with pytest.raises(ImageError, match="damaged"):
        read_header(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (raw_png(19_000, 19_000, bytes(19_001) * 19_000), "19000x19000 pixels: expected at most 50000000"),
        (with_frame_size(TARGETS["jpeg"], 65_500, 65_500), "65500x65500 pixels: expected at most"),
        (
            b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
            "65535x65535 pixels: expected at most",
        ),
        (
            b"GIF89a\x01\0\x01\0\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
            "65535x65535 pixels: expected at most",
        ),
        (
            b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(20),
            "16384x16384 pixels: expected at most",
        ),
        (
            b"BM" + bytes(12) + struct.pack("<Iii", 40, 60_000, -60_000) + bytes(30),
            "60000x60000 pixels: expected at most",
        ),
    ],
    ids=["png", "jpeg", "gif screen", "gif picture", "webp", "bmp"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", _never)
    monkeypatch.setattr("nestling.inputs.image.pillow.opened", _never)
    assert said in _refusal(data, ImageSizeError)


def _never(*_: object) -> None:
    raise AssertionError("a decoder was asked")


def test_decoders_that_hold_more_a_pixel_take_fewer_pixels() -> None:
    progressive = saved(PIXELS, "JPEG", progressive=True, subsampling=0)
    baseline = TARGETS["jpeg"]
    assert read_header(baseline).pixel_bytes == 4
    assert read_header(progressive).pixel_bytes == 10
    assert "5000x5000 pixels take 238 MiB to decode" in _refusal(
        with_frame_size(progressive, 5000, 5000), ImageSizeError
    )
    with pytest.raises(ImageError, match="damaged"):
        read(with_frame_size(baseline, 5000, 5000))


def test_an_animation_of_many_frames_decodes_the_first_alone() -> None:
    data = frames(300, "GIF")
    cut = data[: len(data) // 2]  # what lies behind the first frame is not looked at
    assert np.array_equal(read(data).pixels, read(cut).pixels)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_chunk_that_inflates_to_gigabytes_is_refused(kind: bytes) -> None:
    inflates = zlib.compress(bytes(1 << 26), 9)
    body = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[kind] + inflates
    data = raw_png(8, 8, bytes(72), extra=[chunk(kind, body)])
    assert "PNG is damaged" in _refusal(data)


def test_ten_megabytes_of_exif_are_no_error() -> None:
    assert np.array_equal(read(png(PIXELS, exif=b"Exif\0\0" + bytes(10_000_000))).pixels, read(PIXELS).pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
def test_small_and_long_images_are_images(size: tuple[int, int]) -> None:
    assert read(png(gradient(*size))).tokens >= 1


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (10, 3000)])
def test_an_image_that_is_too_long_is_refused(size: tuple[int, int]) -> None:
    said = "one side is more than 200 times the other"
    assert said in _refusal(png(gradient(*size)))
    assert said in _refusal(gradient(*size))


def test_an_image_without_pixels_is_refused() -> None:
    empty = bytearray(png(PIXELS))
    empty[16:20] = bytes(4)
    empty[29:33] = zlib.crc32(bytes(empty[12:29])).to_bytes(4, "big")
    for value in (bytes(empty), np.zeros((0, 5, 3), np.uint8), PillowImage.new("RGB", (0, 4))):
        assert "expected at least 1x1" in _refusal(value)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_a_channel_are_refused(mode: str) -> None:
    image = PillowImage.new(mode, (60, 60), 40_000)
    assert "convert it to 8 bits" in _refusal(image)
    if mode == "I;16":
        assert "convert it to 8 bits" in _refusal(saved(image, "PNG"))


def test_16_bit_rgb_is_read_as_8_bits_as_the_original_does() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0x1200, 0x3400, 0x5600) * 30 for _ in range(30))
    assert read(raw_png(30, 30, rows, depth=16, colour=2)).pixels[0, 0].tolist() == [0x12, 0x34, 0x56]


@pytest.mark.parametrize("mode", ["LAB", "HSV", "RGBa"])
def test_pil_images_of_other_colours_are_refused(mode: str) -> None:
    assert f"mode {mode}: convert it" in _refusal(PillowImage.new(mode, (60, 60)))


def test_a_closed_pil_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with PillowImage.open(tmp_path / "a.png") as image:
        pass
    assert "the PIL image cannot be read" in _refusal(image)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((1, 4, 4, 3), np.uint8)],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_arrays_of_other_shapes_are_refused(array: Any) -> None:
    assert "expected uint8 and (H, W), (H, W, 3) or (H, W, 4)" in _refusal(array)


@pytest.mark.parametrize("value", [None, 3, {}, [], object(), True])
def test_other_objects_are_refused(value: object) -> None:
    assert "expected a path, bytes, a PIL image or a numpy array" in _refusal(value)


CODE = base64.b64encode(TARGETS["png"]).decode()
BROKEN_TEXTS = {
    "": "empty",
    "not base64!": "not base64",
    CODE[:20] + " " + CODE[20:]: "not base64",
    CODE + "=": "not base64",
    CODE[:-5]: "not base64",
    "data:text/html;base64," + CODE: "data URI of text/html",
    "data:image/svg+xml;base64," + CODE: "data URI of image/svg+xml",
    "data:;base64," + CODE: "data URI of no type",
    "data:image/png," + CODE: "expected ;base64",
    "data:image/png;base64": "base64",
    "data:image/png;base64,": "empty",
    "data:" + "image/png" * 20: "data:image/png;base64,",
    "https://example.com/a.png": "not base64",
    "file:///etc/passwd": "not base64",
    "/etc/passwd!": "not base64",
    "javascript:alert(1)": "not base64",
    "CODÉ": "not base64",
}


@pytest.mark.parametrize("text", BROKEN_TEXTS, ids=lambda text: text[:25])
def test_base64_and_data_uris_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_base64(text)
    assert BROKEN_TEXTS[text] in str(caught.value)


def test_line_breaks_in_base64_and_a_wrong_declared_type_are_read() -> None:
    broken_up = base64.encodebytes(TARGETS["jpeg"]).decode().replace("\n", "\r\n")
    as_png = "data:image/png;charset=x;base64," + broken_up
    assert np.array_equal(decode(open_base64(as_png)).pixels, read(TARGETS["jpeg"]).pixels)


def test_a_url_is_not_fetched() -> None:
    for url in ("http://127.0.0.1/a.png", "HTTPS://example.com/a", "ftp://example.com/a.png", "file:///etc/passwd"):
        assert "URLs are not downloaded here" in _refusal(url)


def test_more_bytes_than_the_limit_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    limits, data = Limits(file_bytes=100), png(PIXELS)
    (tmp_path / "a.png").write_bytes(data)
    for value in (data, tmp_path / "a.png", "data:image/png;base64," + base64.b64encode(data).decode()):
        with pytest.raises(ImageSizeError, match="expected at most 100"):
            read(value, limits=limits)
    with pytest.raises(ImageSizeError):
        decoded_base64("A" * 1000, limits=limits)


def test_paths_that_lead_to_no_file_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("missing.png", "pipe", "device", "nowhere", "socket", ""):
            assert str(tmp_path / name) in _refusal(tmp_path / name)
    assert "not a path" in _refusal("a\0b.png")


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret.png"
    path.write_bytes(png())
    monkeypatch.setattr(os, "open", refuse)
    assert f"{path}: cannot be read: Permission denied" in _refusal(path)


def test_a_link_to_a_picture_is_the_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    (tmp_path / "link").symlink_to(tmp_path / "a.png")
    assert read_file(tmp_path / "link") == png(PIXELS)


@pytest.mark.parametrize("colour", ["black", "white", "#123456"])
def test_one_colour_is_an_image_of_that_colour(colour: str) -> None:
    image = PillowImage.new("RGB", (300, 200), colour)
    assert (read(image).pixels == np.asarray(image)[0, 0]).all()


def test_a_jpeg_with_two_sizes_is_damaged() -> None:
    data = TARGETS["jpeg"]
    at = next(place for place in range(len(data)) if data[place : place + 2] == b"\xff\xc0")
    frame = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    assert "JPEG is damaged" in _refusal(data[:at] + frame + data[at:])


def test_header_readers_end() -> None:
    """Files that send a reader round in circles, or through millions of empty chunks."""
    many = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
        + chunk(b"aaAa", b"") * 200_000
    )
    circle = b"\xff\xd8" + b"\xff\xe0\x00\x00" * 200_000
    gif = b"GIF89a\x01\0\x01\0\0\0\0" + b"!\xf9\0" * 200_000
    for data in (many, circle, gif, b"\xff\xd8" + b"\xff" * 1_000_000, b"\xff\xd8\xff" + b"\0" * 1_000_000):
        assert "damaged" in _refusal(data)


def test_errors_of_pillow_never_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("cannot identify image file <_io.BytesIO object at 0x7f2a>")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert _refusal(TARGETS["png"]) == "cannot be read as an image: the PNG is damaged or truncated"
