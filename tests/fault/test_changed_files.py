"""A file of a model that has changed is never used as if it had not: equal name, size and time of modification.

Doors, each with its test. What is found is refused in one line, or built again where that is ours to do.

    the starter's model, head, tower, adapters: built again           test_a_starter_file_that_changed_is_built_again
    the same where nothing can be written: refused                    test_..._in_a_cache_that_cannot_be_written
    a named or given file with a card: model, base, adapter, head, tower     test_a_file_that_is_not_its_cards_...
    a pulled file                                                     test_a_pulled_file_that_changed_is_refused
    the source of `quantize` and `imatrix`, before the work           test_the_source_of_a_quantization_...
    a model that the server loads again while it runs                 test_a_served_file_that_changed_...
    a model in memory whose file is overwritten, or replaced          test_a_model_in_memory_does_not_...
    a tower that is in memory under the same path                     test_a_tower_in_memory_is_not_used_...
    the memory of hashes itself                                       test_a_hash_is_remembered_...
    expanded weights            test_weight_cache
    the model of a bulk job     test_bulk_faults; its source by size, first and last 64 KiB, as docs/bulk.md says

A tokenizer is in the model's file, so it is checked with it. A model in memory has read all but its embeddings, which
lie in the mapped file: it looks whether that was written to, by size and time, before each batch.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.command_line import nestling
from tests.contract.serving import running, settings

from nestling._util import files, hashes
from nestling.engine.names import EngineName
from nestling.engine.towers import load_tower
from nestling.errors import BuildError, FileFormatError, GGUFError
from nestling.evaluation.verify import verify
from nestling.formats.card import Card, card_path
from nestling.formats.mmproj import VisionFile
from nestling.models import content, local
from nestling.models.embedder import Embedder
from nestling.server.core.loading import loader

FILES = {
    "model": "starter-text-retrieval-Q8_0.gguf",
    "base": "starter-text-base-Q8_0.gguf",
    "adapter": "adapter-code.gguf",
    "head": "starter-text-retrieval-multivector.gguf",
    "tower": "mmproj-starter-BF16.gguf",
}


@pytest.fixture(scope="module")
def whole(cache_folder: Path) -> Path:
    """The starter's folder with its base."""
    local.resolve("starter-retrieval:Q8_0")
    return local.resolve("starter-base:Q8_0").parent


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in a cache of the test's own."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    return Path(shutil.copytree(whole, tmp_path / "models" / "starter"))


def change(path: Path) -> bytes:
    """Another byte in the middle of the last tensor; size and time of modification stay. -> the bytes before."""
    before, found = path.read_bytes(), path.stat()
    after = bytearray(before)
    after[-40] ^= 1
    path.write_bytes(after)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)
    return before


@pytest.mark.parametrize("name", FILES)
def test_a_starter_file_that_changed_is_built_again(folder: Path, name: str) -> None:
    reference = "starter-base:Q8_0" if name in ("base", "adapter") else "starter-retrieval:Q8_0"
    before = change(folder / FILES[name])
    local.resolve(reference)
    assert (folder / FILES[name]).read_bytes() == before


def test_a_starter_file_that_changed_is_refused_in_a_cache_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwritable(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(local, "_build_starter", unwritable)
    change(folder / FILES["model"])
    with pytest.raises(
        BuildError, match=r"Q8_0.gguf: changed, or of an earlier starter, and .* cannot be written: Permission denied"
    ):
        local.resolve("starter-retrieval:Q8_0")


@pytest.fixture
def given(whole: Path, tmp_path: Path) -> Path:
    """The same files, given by their paths: nothing builds them again."""
    return Path(shutil.copytree(whole, tmp_path / "given"))


LOADS: dict[str, Callable[[Path], object]] = {
    "model": lambda given: Embedder.load(given / FILES["model"]),
    "base": lambda given: Embedder.load(given / FILES["base"]),
    "adapter": lambda given: Embedder.load(given / FILES["base"]),
    "head": lambda given: Embedder.load(given / FILES["model"]).encode_tokens(["a"]),
    "tower": lambda given: Embedder.load(given / FILES["model"]).encode_image([np.zeros((56, 56, 3), np.uint8)]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_its_cards_is_refused(given: Path, name: str) -> None:
    LOADS[name](given)
    change(given / FILES[name])
    card = card_path(given / FILES[name])
    with pytest.raises(FileFormatError, match=rf"{FILES[name]}: changed since it was made: .*{card.name}") as caught:
        LOADS[name](given)
    assert "\n" not in str(caught.value)
    card.unlink()
    LOADS[name](given)


def test_a_file_whose_card_is_of_another_is_refused_and_another_programs_json_is_no_card(given: Path) -> None:
    path = given / FILES["model"]
    card = Card.read(path)
    assert card
    replace(card, sha256="0" * 64).write(given)
    with pytest.raises(FileFormatError, match="000000000000"):
        content.check(path)
    card_path(path).write_text('{"a": 1}')
    assert content.check(path) == path


def test_a_pulled_file_that_changed_is_refused(given: Path, tmp_path: Path) -> None:
    path = given / FILES["model"]
    card = Card.read(path)
    assert card
    blob = tmp_path / "models--o--x" / "blobs" / card.sha256
    snapshot = tmp_path / "models--o--x" / "snapshots" / ("a" * 40)
    for one in (blob.parent, snapshot):
        one.mkdir(parents=True)
    path.rename(blob)
    link = snapshot / path.name
    link.symlink_to(os.path.relpath(blob, snapshot))
    Embedder.load(link)
    change(blob)
    with pytest.raises(FileFormatError, match=r"the hub says .*; make it again, or pull it again"):
        Embedder.load(link)


@pytest.mark.parametrize("verb", ["quantize", "imatrix"])
def test_the_source_of_a_quantization_is_checked_before_the_work(given: Path, tmp_path: Path, verb: str) -> None:
    source, out = given / FILES["model"], tmp_path / "out.gguf"
    change(source)
    done = nestling(verb, str(source), *(["Q4_0"] if verb == "quantize" else []), "--out", str(out))
    assert (done.code, done.err.count("\n"), out.exists()) == (1, 1, False)
    assert "changed since it was made" in done.err


def test_verify_says_that_a_file_is_not_its_cards(given: Path) -> None:
    change(given / FILES["model"])
    [hashed] = [check for check in verify(given / FILES["model"]) if not check.passed]
    assert hashed.name == "hash"


def test_a_served_file_that_changed_is_not_loaded_again(given: Path) -> None:
    path = given / FILES["model"]
    wanted = settings(model=(str(path),))
    with running(loader(wanted), model=wanted.model) as server:
        assert ask(server.url).status_code == 200
        change(path)
        assert ask(server.url).status_code == 200, "what is in memory is what was read"
        [model] = server.service.models.loaded
        server.loop.call_soon_threadsafe(server.service.models._unload, model)
        answer = ask(server.url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_error")
        assert "changed since it was made" in answer.json()["error"]["message"]


def ask(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=60)


@pytest.mark.parametrize("engine", ["openvino", "reference"])
def test_a_model_in_memory_does_not_read_another_files_embeddings(given: Path, engine: str) -> None:
    path = given / FILES["model"]
    with closing(Embedder.load(path, engine=engine)) as model:
        before = model.encode(["a"])
        content_of = path.read_bytes()
        (given / "new").write_bytes(content_of[:-40] + b"x" * 40)
        (given / "new").replace(path)
        assert np.array_equal(model.encode(["a"]), before), "replaced: what was opened is still there"
    path.write_bytes(content_of)
    with closing(Embedder.load(path, engine=engine)) as model:
        with path.open("r+b") as file:
            file.seek(-40, os.SEEK_END)
            file.write(b"x" * 40)
        os.utime(path)  # the file system's clock may not have ticked since it was opened
        with pytest.raises(GGUFError, match="overwritten while it was in use"):
            model.encode(["a"])
        path.unlink()
        assert model.encode(["a"]).shape == before.shape, "removed: what was opened is still there"


def test_a_served_file_that_was_overwritten_is_loaded_again_or_refused(given: Path) -> None:
    path = given / FILES["model"]
    wanted = settings(model=(str(path),))
    with running(loader(wanted), model=wanted.model) as server:
        assert ask(server.url).status_code == 200
        os.utime(path)
        assert ask(server.url).status_code == 200, "the same bytes, loaded again"
        assert server.service.metrics.value("nestling_engine_resets_total", device="default") == 1
        change(path)
        os.utime(path)
        assert ask(server.url).status_code == 500


def test_a_tower_in_memory_is_not_used_for_another_file_of_its_name(given: Path) -> None:
    path = given / FILES["tower"]
    first = load_tower(VisionFile.open(path), name=EngineName.REFERENCE)
    assert load_tower(VisionFile.open(path), name=EngineName.REFERENCE) is first
    change(path)
    assert load_tower(VisionFile.open(path), name=EngineName.REFERENCE) is not first


# The memory of hashes.


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """What was hashed, in a cache of the test's own, where files settle at once."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return files.sha256_file(path)

    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "sha256_file", counted)
    monkeypatch.setattr(hashes, "SETTLED_S", -1.0)
    return found


def write(path: Path, text: bytes) -> Path:
    path.write_bytes(text * 100)
    return path


def test_a_hash_is_remembered_until_the_file_changes(hashed: list[Path], tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"a")
    first = hashes.sha256_of(path)
    assert hashes.sha256_of(path) == first == files.sha256_file(path)
    assert hashed == [path]
    change(path)
    assert hashes.sha256_of(path) != first
    assert hashed == [path, path]
    other = tmp_path / "b"
    shutil.copy2(path, other)
    other.replace(path)
    assert hashes.sha256_of(path) != first
    assert len(hashed) == 3, "another file under its name"


def test_a_file_that_has_just_changed_is_hashed_again(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system's clock may stand still for some milliseconds."""
    monkeypatch.setattr(hashes, "SETTLED_S", 3600.0)
    path = write(tmp_path / "a", b"a")
    assert hashes.sha256_of(path) == hashes.sha256_of(path)
    assert len(hashed) == 2


@pytest.mark.parametrize("spoilt", [b"", b"[]", b"{", b'{"a": 1}', b"[" * 100_000, b"\xff"])
def test_a_spoilt_memory_is_none(hashed: list[Path], tmp_path: Path, spoilt: bytes) -> None:
    path = write(tmp_path / "a", b"a")
    hashes.sha256_of(path)
    (tmp_path / "cache" / hashes.MEMORY).write_bytes(spoilt)
    assert hashes.sha256_of(path) == files.sha256_file(path)
    assert hashes.sha256_of(path) == files.sha256_file(path)
    assert len(hashed) == 2


def test_where_nothing_can_be_written_nothing_is_remembered(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", b"a")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "file"))
    assert hashes.sha256_of(path) == hashes.sha256_of(path)
    assert len(hashed) == 2


def test_a_read_only_image_is_hashed_every_time(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "keeps_times", lambda _path: False)
    path = write(tmp_path / "a", b"a")
    assert hashes.sha256_of(path) == hashes.sha256_of(path)
    assert len(hashed) == 2


def test_the_memory_forgets_files_that_are_gone(hashed: list[Path], tmp_path: Path) -> None:
    paths = [write(tmp_path / name, name.encode()) for name in "ab"]
    hashes.sha256_of(paths[0])
    paths[0].unlink()
    hashes.sha256_of(paths[1])
    assert str(paths[0]) not in (tmp_path / "cache" / hashes.MEMORY).read_text()
