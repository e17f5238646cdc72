"""Bulk jobs of images: what they become, and that a bad one is its row's fault, never the job's end.

The doors by which an image comes into a job: bytes, {bytes, path}, paths and data URIs in a column of Parquet, JSON
lines and CSV; files of a folder, by pattern, by name, beyond this machine. The rows of "bad image input" stand in
`BAD`; kills and Ray in `test_bulk_faults`; a model without a tower, another tower and other engines are refused before
the job begins.
"""

import base64
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image as PillowImage
from tests.command_line import nestling
from tests.corpora import contents, jsonl, parquet, rejects, result
from tests.picture_files import chunk, frames, png, raw_png, saved, with_frame_size
from tests.pictures import bars, gradient, noise, page, plain

from nestling import bulk
from nestling.bulk import embedding, manifest
from nestling.bulk.manifest import Log
from nestling.errors import BuildError, FileFormatError, NestlingError, UsageError
from nestling.inputs.image import read
from nestling.models.embedder import Embedder
from nestling.models.vision import Vision
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task

Make = Callable[..., bulk.Outcome]
PIXELS = [page(84, 140), gradient(56, 84), noise(56, 56), bars(70, 60), plain(56, 56, value=0)]
FILES = [png(one) for one in PIXELS]
NAMES = [f"p{number}.png" for number in range(len(FILES))]


@pytest.fixture(scope="module")
def model(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    Pipeline(Checkpoint.open(vision_checkpoint), folder, "tiny", 1).build([Task.RETRIEVAL], ["F32"])
    return model_path(folder, family="tiny", task=Task.RETRIEVAL, file_type="F32")


@pytest.fixture(scope="module")
def embedder(model: Path) -> Iterator[Embedder]:
    loaded = Embedder.load(model, engine="reference")
    yield loaded
    loaded.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def make(source: Path, tmp_path: Path, model: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Run a job over the source folder, or what is given; two rows a shard."""
    monkeypatch.setattr(embedder, "close", lambda: None)
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: embedder)

    def run(given: Any = None, out: str = "out", **changes: Any) -> bulk.Outcome:
        options = bulk.RunOptions.__dataclass_fields__.keys() - bulk.JobSpec.__dataclass_fields__.keys()
        how = {name: changes.pop(name) for name in list(changes) if name in options}
        settings: dict[str, Any] = {"model": str(model), "backend": "reference", "shard_rows": 2}
        spec = bulk.JobSpec(**settings | changes)
        return bulk.run([str(given or source)], tmp_path / out, spec, bulk.RunOptions(**how))

    return run


def pictures(folder: Path) -> Path:
    """The images as files p0.png, p1.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in zip(NAMES, FILES, strict=True):
        (folder / name).write_bytes(data)
    return folder


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def reasons(out: Path) -> dict[Any, str]:
    return {one: reason for _, _, one, reason in rejects(out)}


# What they become.


def _as_bytes(folder: Path) -> None:
    parquet(folder / "c.parquet", {"id": NAMES, "image": FILES}, group=2)


def _as_hugging_face_has_it(folder: Path) -> None:
    pictures(folder)
    images = [{"bytes": data, "path": None} for data in FILES[:3]] + [
        {"bytes": None, "path": name} for name in NAMES[3:]
    ]
    parquet(folder / "c.parquet", {"id": NAMES, "image": images})


def _as_paths(folder: Path) -> None:
    pictures(folder)
    jsonl(folder / "c.jsonl.gz", [{"id": name, "image": name} for name in NAMES])


def _as_absolute_paths(folder: Path) -> None:
    pictures(folder.parent / "elsewhere")
    (folder / "c.csv").write_text("id,image\n" + "".join(f"{n},{folder.parent / 'elsewhere' / n}\n" for n in NAMES))


def _as_data_uris(folder: Path) -> None:
    jsonl(folder / "c.jsonl", [{"id": name, "image": uri(data)} for name, data in zip(NAMES, FILES, strict=True)])


WAYS = [_as_bytes, _as_hugging_face_has_it, _as_paths, _as_absolute_paths, _as_data_uris]


@pytest.mark.parametrize("write", WAYS, ids=lambda one: one.__name__.strip("_"))
def test_the_vectors_are_those_of_encode_image(
    make: Make, source: Path, tmp_path: Path, embedder: Embedder, write: Callable[[Path], None]
) -> None:
    write(source)
    outcome = make(image_column="image")
    assert (outcome.rows, outcome.rejected, outcome.shards, outcome.skipped) == (5, 0, 3, ())
    found = result(tmp_path / "out")
    assert list(found) == NAMES
    np.testing.assert_allclose(np.stack(list(found.values())), embedder.encode_image(FILES), atol=1e-5)


def test_a_folder_of_image_files_is_a_source(make: Make, source: Path, tmp_path: Path, embedder: Embedder) -> None:
    """No column; ids are relative paths; endings in any case; what is no image is said."""
    pictures(source / "a b")
    (source / "Z.JPEG").write_bytes(saved(PIXELS[0], "JPEG"))
    (source / "notes.txt").write_text("mine")
    (source / "scan.tiff").write_bytes(b"II*\0")
    (source / "_tmp.png").write_bytes(FILES[0])
    outcome = make()
    assert (outcome.rows, outcome.rejected, outcome.shards) == (6, 0, 3)
    assert outcome.skipped == (
        "1 file whose name begins with . or _: _tmp.png",
        "2 files of no kind that is read: notes.txt, scan.tiff",
    )
    found = result(tmp_path / "out")
    assert list(found) == ["Z.JPEG", *(f"a b/{name}" for name in NAMES)]
    np.testing.assert_allclose(np.stack(list(found.values())[1:]), embedder.encode_image(FILES), atol=1e-5)
    assert make(source / "a b" / "p*.png", out="pattern").rows == 5
    assert make(source / "Z.JPEG", out="alone").rows == 1


def test_wherever_fsspec_reaches(make: Make, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, data in zip(NAMES, FILES, strict=True):
        memory.pipe(f"/bulk-images/pages/{name}", data)
    table = "".join(json.dumps({"image": f"pages/{name}"}) + "\n" for name in [*NAMES, "none.png"])
    memory.pipe("/bulk-images/c.jsonl", table.encode())
    try:
        assert make("memory://bulk-images/pages", out="files").rows == 5
        assert make("memory://bulk-images/c.jsonl", image_column="image").rows == 5
    finally:
        memory.rm("/bulk-images", recursive=True)
    assert [reason.split(" (")[0] for *_, reason in rejects(tmp_path / "out")] == ["pages/none.png: cannot be read"]


def test_images_beside_tables_are_said_unless_a_column_names_them(make: Make, source: Path) -> None:
    pictures(source)
    jsonl(source / "c.jsonl", [{"text": "a"}])
    [said] = make().skipped
    assert said == (
        "5 files with an image next to tables (give them as a separate source, or a column of their paths): "
        "p0.png, p1.png, p2.png, p3.png, p4.png"
    )
    jsonl(source / "c.jsonl", [{"image": "p0.png"}])
    assert make(image_column="image", out="o2").skipped == ()


def test_tables_and_image_files_share_a_job(make: Make, source: Path, tmp_path: Path, model: Path) -> None:
    texts, images = jsonl(tmp_path / "c.jsonl", [{"id": "t", "text": "a"}]), pictures(source)
    spec = bulk.JobSpec(str(model), backend="reference")
    assert bulk.run([str(images), str(texts)], tmp_path / "out", spec).rows == 6
    assert list(result(tmp_path / "out")) == ["t", *NAMES]


def test_texts_and_images_share_a_job(make: Make, source: Path, tmp_path: Path, embedder: Embedder) -> None:
    """Each row has one of the two; an empty field of CSV is nothing."""
    pictures(source)
    lines = ["id,text,image", "t,a river,", "i,,p0.png", "both,a river,p0.png", "none,,"]
    (source / "c.csv").write_text("\n".join(lines))
    jsonl(source / "d.jsonl", [{"id": "t2", "text": "b"}, {"id": "i2", "image": "p1.png"}, {"id": "n2", "image": {}}])
    outcome = make(text_column="text", image_column="image", dimensions=16)
    assert (outcome.rows, outcome.rejected) == (4, 3)
    found = result(tmp_path / "out")
    assert list(found) == ["t", "i", "t2", "i2"]
    wanted = embedder.embed(embedder.items(["a river", FILES[0], "b", FILES[1]], prompt_name="passage"), dimension=16)
    np.testing.assert_allclose(np.stack(list(found.values())), wanted, atol=1e-5)
    assert reasons(tmp_path / "out") == {
        "both": "both a text and an image; expected one of them",
        "none": "neither a text nor an image",
        "n2": "neither a text nor an image",
    }


def test_kept_columns_and_vector_types(make: Make, source: Path, tmp_path: Path) -> None:
    parquet(source / "c.parquet", {"image": FILES, "n": list(range(5))})
    make(image_column="image", keep=("n", "image"), embedding_type="int8")
    hits = bulk.search(tmp_path / "out", "a page", top=5).hits
    assert sorted(hit.kept["n"] for hit in hits) == list(range(5))
    assert all(hit.kept["image"] == FILES[hit.kept["n"]] for hit in hits)


def test_work_is_counted_in_tokens(make: Make, source: Path, embedder: Embedder) -> None:
    jsonl(pictures(source) / "c.jsonl", [{"text": "a"}, {"image": "p0.png"}, {"image": "p1.png"}])
    told: list[bulk.Status] = []
    items = embedder.items(["a", FILES[0], FILES[1]], prompt_name="passage")
    wanted = sum(item.work for item in items)
    assert wanted > sum(map(len, items))
    assert make(text_column="text", image_column="image").tokens == wanted
    del told


def test_a_shard_with_images_is_smaller_by_default() -> None:
    for more, rows in (({}, 1000), ({"image_column": "i"}, 64), ({"image_column": "i", "shard_rows": 7}, 7)):
        spec = bulk.JobSpec("m", **more)
        assert spec.settled(tables=True, images=spec.image_column is not None).shard_rows == rows
    assert bulk.JobSpec("m").settled(tables=False, images=True).shard_rows == 64


# Bad images.

HEADER = png(PIXELS[0])
BAD: dict[str, tuple[object, str]] = {
    "null": (None, "the image is null"),
    "empty string": ("", "the image is null"),
    "nothing in it": ({}, "the image is null"),
    "a number": (7, "expected a path, a file's bytes or a data URI, not int"),
    "a list": (["p0.png"], "expected a path, a file's bytes or a data URI, not list"),
    "unknown key": ({"image": "p0.png"}, "expected a path, a file's bytes or a data URI, not dict"),
    "base64 without a prefix": (base64.b64encode(HEADER).decode(), "cannot be read: "),
    "not base64": ("data:image/png;base64,????", "not base64"),
    "blanks": ("data:image/png;base64,QUJD QUJD", "not base64"),
    "wrong padding": (uri(HEADER)[:-1], "not base64"),
    "html data uri": ("data:text/html;base64,QUJD", "data URI of text/html"),
    "svg data uri": ("data:image/svg+xml;base64,QUJD", "data URI of image/svg+xml"),
    "not declared base64": ("data:image/png,abc", "expected ;base64"),
    "url": ("http://169.254.169.254/latest", "URLs are not downloaded here"),
    "file url": ("file:///etc/passwd", "URLs are not downloaded here"),
    "javascript": ("javascript:alert(1)", "cannot be read: No such file or directory"),
    "a text": ("/etc/passwd", "cannot be read as an image"),
    "missing": ("none.png", "none.png: cannot be read: No such file or directory"),
    "folder": ("folder", "folder: not a regular file"),
    "pipe": ("pipe", "pipe: not a regular file"),
    "device": ("device", "device: not a regular file"),
    "dangling link": ("dangling.png", "dangling.png: cannot be read: No such file or directory"),
    "nul in the path": ("a\0b.png", "cannot be read: not a path"),
    "lone surrogate": ("a\ud800.png", "cannot be read: not a path"),
    "too large a file": ("large.png", "at most 67108864"),
    "html": (b"<!DOCTYPE html><html></html>", "this is HTML"),
    "empty file": (b"", "empty; expected one of PNG"),
    "zip": (b"PK\x03\x04" + bytes(60), "this is a zip archive"),
    "pdf": (b"%PDF-1.7\n", "this is a PDF"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "this is PostScript"),
    "tiff": (b"II*\x00" + bytes(60), "this is a TIFF"),
    "psd": (b"8BPS\0\1" + bytes(60), "this is a PSD"),
    "icon": (b"\x00\x00\x01\x00\x01\x00" + bytes(60), "this is an icon"),
    "fits": (b"SIMPLE  =     T", "this is a FITS file"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is SVG"),
    "jpeg 2000": (b"\x00\x00\x00\x0cjP  \r\n", "this is a JPEG 2000"),
    "random": (bytes(range(7, 200)), "cannot be read as an image"),
    "half a png": (HEADER[: len(HEADER) // 2], "the PNG is damaged or truncated"),
    "half a jpeg": (saved(noise(60, 80), "JPEG")[:900], "the JPEG is damaged or truncated"),
    "wrong crc": (HEADER[:-1] + b"\0", "the PNG is damaged or truncated"),
    "bomb": (raw_png(19_000, 19_000, bytes(19_001) * 19_000), "19000x19000 pixels: expected at most 50000000"),
    "jpeg bomb": (with_frame_size(saved(PIXELS[0], "JPEG"), 65_500, 65_500), "65500x65500 pixels: expected at most"),
    "inflating chunk": (
        raw_png(8, 8, bytes(72), extra=[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))]),
        "damaged",
    ),
    "1x201": (png(gradient(1, 201)), "one side is more than 200 times the other"),
    "16 bits": (saved(PillowImage.new("I;16", (60, 60), 40_000), "PNG"), "convert it to 8 bits"),
}
STILL_IMAGES: dict[str, bytes] = {
    "1x1": png(gradient(1, 1)),
    "1x200": png(gradient(1, 200)),
    "black": png(plain(60, 60, value=0)),
    "jpeg": saved(PIXELS[0], "JPEG"),
    "webp": saved(PIXELS[0], "WEBP"),
    "bmp": saved(PIXELS[0], "BMP"),
    "animated": frames(3, "GIF"),
    "palette": saved(PillowImage.new("P", (60, 60), 3), "PNG"),
    "grey with alpha": saved(PillowImage.new("LA", (60, 60)), "PNG"),
    "cmyk": saved(PillowImage.new("CMYK", (60, 60)), "JPEG"),
    "1 bit": saved(PillowImage.new("1", (60, 60)), "PNG"),
    "exif": png(PIXELS[0], exif=b"Exif\0\0" + bytes(1000)),
}


@pytest.fixture
def odd_files(source: Path) -> Path:
    (source / "folder").mkdir()
    os.mkfifo(source / "pipe")
    (source / "device").symlink_to("/dev/zero")
    (source / "dangling.png").symlink_to("nowhere")
    (source / "link.png").symlink_to(pictures(source.parent / "elsewhere") / "p0.png")
    with (source / "large.png").open("wb") as file:
        file.truncate((64 << 20) + 1)
    return source


def test_a_bad_image_in_json_lines_is_its_rows_fault(make: Make, odd_files: Path, tmp_path: Path) -> None:
    values = {
        name: uri(value) if isinstance(value, bytes) else value for name, (value, _) in BAD.items() if value != b""
    }
    table = jsonl(odd_files / "c.jsonl", [{"id": name, "image": value} for name, value in values.items()])
    with table.open("a") as file:
        file.write('{"id": "link", "image": "link.png"}\n{"id": "good", "image": "' + uri(FILES[0]) + '"}\n')
    outcome = make(table, image_column="image")
    assert (outcome.rows, outcome.rejected) == (2, len(values))
    vectors = result(tmp_path / "out")
    np.testing.assert_array_equal(vectors["link"], vectors["good"])
    found = reasons(tmp_path / "out")
    assert {name: BAD[name][1] for name in values if BAD[name][1] not in found[name]} == {}, found
    assert all("\n" not in reason and len(reason) < 250 for reason in found.values())


def test_bad_bytes_in_parquet_are_their_rows_fault(make: Make, source: Path, tmp_path: Path) -> None:
    values = {name: value for name, (value, _) in BAD.items() if isinstance(value, bytes)} | STILL_IMAGES
    parquet(source / "c.parquet", {"id": list(values), "image": list(values.values())}, group=50)
    outcome = make(image_column="image", shard_rows=50)
    assert list(result(tmp_path / "out")) == list(STILL_IMAGES)
    found = reasons(tmp_path / "out")
    assert len(found) == outcome.rejected == len(values) - len(STILL_IMAGES)
    assert {name: why for name, why in found.items() if BAD[name][1] not in why} == {}


def test_bad_files_of_a_folder_are_their_rows_fault(make: Make, odd_files: Path, tmp_path: Path) -> None:
    """Links, pipes and folders under an image's name too; a bad name is a fault with a name that can be written."""
    values = {name: value for name, (value, _) in BAD.items() if isinstance(value, bytes)}
    for name, value in values.items():
        (odd_files / f"{name}.png").write_bytes(value)
    os.mkfifo(odd_files / "pipe.png")
    (odd_files / "device.png").symlink_to("/dev/zero")
    (odd_files / "to a folder.png").symlink_to("folder")
    Path(os.fsdecode(os.fsencode(odd_files) + b"/caf\xe9.png")).write_bytes(FILES[0])
    outcome = make(shard_rows=100)
    assert list(result(tmp_path / "out")) == ["link.png"]
    found = reasons(tmp_path / "out")
    assert outcome.rejected == len(found) == len(values) + 6
    assert {name: why for name, why in values.items() if BAD[name][1] not in found[f"{name}.png"]} == {}
    assert found["caf\\xe9.png"] == "caf\\xe9.png: its name is not UTF-8"
    assert found["device.png"] == "device.png: no regular file"
    assert found["dangling.png"] == "dangling.png: cannot be read (No such file or directory)"
    assert any("pipe" in line for line in outcome.skipped), "a pipe without an ending is no image"
    assert make(shard_rows=100).shards_now == 0


def test_a_picture_that_goes_away_while_the_job_runs(make: Make, source: Path, tmp_path: Path) -> None:
    pictures(source)
    real = Vision.read

    def forgetful(self: Vision, values: Any, **more: Any) -> Any:
        (source / NAMES[3]).unlink(missing_ok=True)
        return real(self, values, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vision, "read", forgetful)
        assert make().rejected == 1
    assert reasons(tmp_path / "out") == {NAMES[3]: f"{NAMES[3]}: cannot be read: No such file or directory"}


def test_max_rejects_counts_images(make: Make, source: Path) -> None:
    for number in range(3):
        (source / f"{number}.png").write_bytes(b"nonsense")
    with pytest.raises(BuildError, match="2 rows are rejected, max_rejects=1"):
        make(max_rejects=1)


# What is refused before the job begins.


def test_a_misspelt_column_is_told_its_nearest_spelling(make: Make, source: Path) -> None:
    parquet(source / "c.parquet", {"id": ["a"], "image": [FILES[0]], "title": ["x"], "text": ["x"]})
    for param, name, meant in (
        ("image_column", "imgae", "image"),
        ("text_column", "txet", "text"),
        ("id_column", "iid", "id"),
    ):
        with pytest.raises(UsageError, match=rf"{param}='{name}': c\.parquet has .*'title'.*; did you mean {meant}\?"):
            make(**{param: name})
    with pytest.raises(UsageError, match=r"keep='titel': .*; did you mean title\?"):
        make(keep=("titel",))
    with pytest.raises(UsageError, match=r"text_column='body': .* has the columns 'id', 'image', 'title', 'text'$"):
        make(text_column="body", image_column="image")
    done = nestling("bulk", source, "--out", source.parent / "o", "--image-column", "imgae")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "did you mean image?" in done.err


def test_a_column_of_another_type_is_refused(make: Make, source: Path) -> None:
    parquet(source / "c.parquet", {"image": [1, 2]})
    with pytest.raises(FileFormatError, match=r"expected bytes, paths or \{bytes, path\}; image_column"):
        make(image_column="image")


def test_columns_without_tables_and_one_column_for_both_are_refused(make: Make, source: Path) -> None:
    pictures(source)
    for param in ("text_column", "image_column"):
        with pytest.raises(UsageError, match=f"{param}='x': the source is image files, which have no columns"):
            make(**{param: "x"})
    with pytest.raises(UsageError, match="image_column='x': is already the column of texts"):
        make(text_column="x", image_column="x")


def test_a_model_without_a_tower_is_refused(make: Make, source: Path, model: Path, tmp_path: Path) -> None:
    pictures(source)
    alone = shutil.copy(model, tmp_path)
    with pytest.raises(UsageError, match=r"no vision tower \(mmproj-tiny-BF16\.gguf\)"):
        make(model=str(alone))
    assert not (tmp_path / "out").exists()


def test_the_torch_engine_takes_pictures_too(
    make: Make, source: Path, tmp_path: Path, model: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in float32; sums in another order."""
    pictures(source)
    monkeypatch.undo()
    own = Embedder.load(model, engine="torch", device="cpu", threads=1)
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: own)
    assert make(backend="torch", device="cpu").rows == len(NAMES)
    found = result(tmp_path / "out")
    np.testing.assert_allclose(np.stack([found[name] for name in NAMES]), embedder.encode_image(FILES), atol=1e-5)


def test_an_engine_without_vision_is_refused(make: Make, source: Path) -> None:
    pictures(source)
    with pytest.raises(NestlingError, match="expected one of auto, openvino, torch, reference"):
        make(backend="llamacpp")


def test_another_tower_is_refused(make: Make, source: Path, model: Path, tmp_path: Path) -> None:
    """On a rerun, in a worker whose file is another, and in a search by image."""
    folder = tmp_path / "models"
    shutil.copytree(model.parent, folder)
    pictures(source)
    mine = str(folder / model.name)
    make(model=mine)
    tower = folder / "mmproj-tiny-BF16.gguf"
    data = bytearray(tower.read_bytes())
    data[-1] ^= 1
    tower.write_bytes(data)
    with pytest.raises(BuildError, match="holds a job with tower_sha256="):
        make(model=mine)
    with pytest.raises(BuildError, match=r"mmproj-tiny-BF16\.gguf: SHA-256 .* the job's model file has"):
        bulk.search(tmp_path / "out", FILES[0], model=mine)
    assert bulk.search(tmp_path / "out", "a text", model=mine).hits, "a text needs no tower"


# Taking up again.


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_is_resumed_and_ends_the_same(
    make: Make, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    pictures(source)
    make(out="whole")
    add, done = Log.add, list[None]()

    def dying(self: Log, one: Any) -> None:
        if len(done) == count:
            raise KeyboardInterrupt
        add(self, one)
        done.append(None)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert make().shards_now == 3 - count - 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_changed_image_files_are_refused(make: Make, source: Path) -> None:
    pictures(source)
    make()
    (source / "new.png").write_bytes(FILES[0])
    with pytest.raises(BuildError, match="the image files of its source have changed since this job began"):
        make()
    (source / "new.png").unlink()
    (source / NAMES[0]).write_bytes(FILES[0][:-1] + b"x")
    with pytest.raises(BuildError, match="the image files of its source have changed"):
        make()


def test_a_job_from_before_images_is_resumed(make: Make, source: Path, tmp_path: Path) -> None:
    jsonl(source / "c.jsonl", [{"text": "a"}])
    make()
    path = tmp_path / "out" / manifest.JOB
    told = json.loads(path.read_text())
    del told["settings"]["image_column"], told["source"]["image_column"], told["model"]["tower"]
    path.write_text(json.dumps(told))
    assert make().shards_now == 0


# How.


def test_images_are_decoded_in_another_thread_and_one_group_ahead(
    make: Make, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held is bounded: never more than two groups are decoded and not embedded."""
    monkeypatch.setattr(embedding, "GROUP_WORK", 1)
    pictures(source)
    threads, decoded, embedded, most = set[int](), [0], [0], [0]
    real, rows = Vision.read, Embedder.embed_iter

    def read_here(self: Vision, values: Any, **more: Any) -> Any:
        threads.add(threading.get_ident())
        decoded[0] += 1
        most[0] = max(most[0], decoded[0] - embedded[0])
        return real(self, values, **more)

    def embed_iter(self: Embedder, items: Any, **more: Any) -> Any:
        yield from rows(self, items, **more)
        embedded[0] += len(items)

    monkeypatch.setattr(Vision, "read", read_here)
    monkeypatch.setattr(Embedder, "embed_iter", embed_iter)
    make(shard_rows=5)
    assert threading.get_ident() not in threads
    assert (decoded, embedded) == ([5], [5])
    assert most[0] <= 2


# Search.


def test_a_corpus_of_images_is_searched_by_text_and_by_image(make: Make, source: Path, tmp_path: Path) -> None:
    pictures(source)
    make()
    assert len(bulk.search(tmp_path / "out", "a black picture", top=3).hits) == 3
    for number, (name, data) in enumerate(zip(NAMES, FILES, strict=True)):
        query = source / name if number % 2 else data
        best = bulk.search(tmp_path / "out", query, top=1).hits[0]
        assert (best.id, round(best.score, 4)) == (name, 1.0)
    with pytest.raises(UsageError, match=r"query: .*none\.png: cannot be read"):
        bulk.search(tmp_path / "out", Path("none.png"))


def test_the_commands(source: Path, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    pictures(source)
    (source / "broken.png").write_bytes(b"nonsense")
    (source / "notes.txt").write_text("x")
    done = nestling("bulk", source, "--out", out, "-m", model, "--backend", "reference")
    assert (done.code, done.err) == (0, "skipped: 1 file of no kind that is read: notes.txt\n")
    assert "5 vectors in 1 shards, 1 rows rejected" in done.out
    hits = json.loads(nestling("search", out, "--image", source / "p1.png", "-m", model, "--top", "1", "--json").out)
    assert [hit["id"] for hit in hits] == ["p1.png"]
    both: list[str | Path] = ["a text", "--image", source / "p1.png"]
    for more in ([], both):
        wrong = nestling("search", out, *more, "-m", model)
        assert (wrong.code, wrong.err) == (2, "nestling: query: give a text or --image FILE, one of them\n")


def test_the_reasons_are_those_of_the_library() -> None:
    """What a row says of its bytes is what `nestling embed --image` says."""
    from nestling.errors import ImageError

    for value, said in BAD.values():
        if isinstance(value, bytes):
            with pytest.raises(ImageError) as caught:
                read(value)
            assert said in caught.value.reason
