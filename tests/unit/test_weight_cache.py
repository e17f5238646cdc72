"""Expanded matrices: kept on the disk for large files, made anew for small ones, never half and never another file's.

Doors by which weights of other bytes could be used: the model's file changed in place, another file of the same name,
size, header and times, an adapter beside it, a file system that keeps no times of change, a spoilt note.
"""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from tests.command_line import nestling

from nestling._util import files
from nestling.engine.names import EngineName
from nestling.engine.openvino import weight_cache, weight_files
from nestling.engine.openvino.expansion import Expansion
from nestling.engine.protocol import plain
from nestling.engine.registry import load_engine
from nestling.errors import UsageError
from nestling.formats.gguf import GGUFFile
from nestling.models import local, removal

Usage = namedtuple("Usage", ["total", "used", "free"])
IDS = [np.arange(5, 40, dtype=np.int32), np.arange(9, 12, dtype=np.int32)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and every file large enough to be kept."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(weight_cache, "MAPPED_FROM", 0)
    return tmp_path / "expanded"


def vectors(path: Path) -> np.ndarray:
    engine = load_engine(GGUFFile.open(path), name=EngineName.OPENVINO, threads=1)
    try:
        return engine.pool(plain(IDS))
    finally:
        engine.close()


def kept(home: Path) -> list[Path]:
    return sorted(home.glob("*.int8"))


def test_kept_and_mapped_are_the_same_bytes_as_in_memory(
    starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, mapped = vectors(starter_q8), vectors(starter_q8)
    assert len(kept(home)) == 1
    assert not list(home.glob("*.part"))
    monkeypatch.setattr(weight_cache, "MAPPED_FROM", 1 << 40)
    assert np.array_equal(written, vectors(starter_q8))
    assert np.array_equal(mapped, written)


def test_a_second_start_expands_nothing(starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors(starter_q8)
    before = kept(home)[0].stat().st_mtime_ns

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Expansion, "matrix", never)
    vectors(starter_q8)
    assert kept(home)[0].stat().st_mtime_ns == before


def test_a_file_that_changed_is_expanded_again(starter_q8: Path, home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "one.gguf"
    shutil.copy(starter_q8, copy)
    vectors(copy)
    before = kept(home)
    write_other_bytes(copy)
    vectors(copy)
    assert len(kept(home)) == 1
    assert kept(home) != before


def write_other_bytes(path: Path) -> None:
    """Change a block of a tensor in place, as `cp -p`, rsync or a container layer would: equal size, header, mtime."""
    file, before = GGUFFile.open(path), path.stat()
    info = file.tensors["blk.0.ffn_up.weight"]
    with path.open("r+b") as out:
        out.seek(info.offset + info.size_bytes // 2)
        byte = out.read(1)
        out.seek(-1, 1)
        out.write(bytes([byte[0] ^ 0x40]))  # half of the range: more than int8 of coarser groups rounds away
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def never(*_: object, **__: object) -> None:
    raise AssertionError


def test_a_copy_with_other_bytes_and_equal_times_has_weights_of_its_own(
    starter_q8: Path, home: Path, tmp_path: Path
) -> None:
    """One door: another file of the same name, size, header and time of modification, beside the first."""
    one, other = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    for path in (one, other):
        path.parent.mkdir()
        shutil.copy2(starter_q8, path)
    write_other_bytes(other)
    first, second = vectors(one), vectors(other)
    assert len(kept(home)) == 2
    assert not np.array_equal(first, second)
    assert np.array_equal(vectors(one), first)


def test_an_adapter_with_other_bytes_has_weights_of_its_own(home: Path, tmp_path: Path) -> None:
    """The other door: the files beside the model."""
    data = np.arange(100, dtype=np.uint8)
    (tmp_path / "m").write_bytes(data.tobytes())
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    places = {
        weight_files.place(weight_files.stamps_of([(tmp_path / "m", data), (tmp_path / name, data + one)]), b"")
        for one, name in enumerate("ab")
    }
    assert len(places) == 2
    assert {path.parent for path in places} == {home}


def test_a_copy_with_the_same_bytes_shares_them(
    starter_q8: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vectors(starter_q8)
    shutil.copy(starter_q8, tmp_path / "renamed.gguf")
    monkeypatch.setattr(Expansion, "matrix", never)
    assert np.array_equal(vectors(tmp_path / "renamed.gguf"), first)
    assert len(kept(home)) == 1


@pytest.mark.usefixtures("home")
def test_the_bytes_are_hashed_once(starter_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors(starter_q8)
    monkeypatch.setattr(weight_files, "content_hash", never)
    vectors(starter_q8)


@pytest.mark.usefixtures("home")
def test_a_file_system_without_times_of_change_is_hashed_at_every_start(
    starter_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors(starter_q8)
    monkeypatch.setattr(weight_files, "keeps_times", lambda _path: False)
    monkeypatch.setattr(weight_files, "content_hash", never)
    with pytest.raises(AssertionError):
        vectors(starter_q8)


def expansion(home: Path, name: str, *, size: int, used: int, models: dict[str, weight_files.Stamps]) -> Path:
    home.mkdir(exist_ok=True)
    path = home / f"{name}.int8"
    path.write_bytes(bytes(size))
    path.with_suffix(".json").write_text(json.dumps({"models": models}))
    os.utime(path, (used, 1))
    return path


def names(home: Path) -> list[str]:
    return [path.stem for path in kept(home)]


def test_stale_weights_are_evicted_first_and_then_those_not_used_for_longest(starter_q8: Path, home: Path) -> None:
    stamps = weight_files.stamps_of([(starter_q8, GGUFFile.open(starter_q8).data)])
    current, gone = {str(starter_q8): stamps}, {"/gone.gguf": {"/gone.gguf": ["1 2 3", "ab"]}}
    for name, used, models in (("new", 9, current), ("old", 1, current), ("gone", 8, gone), ("unknown", 7, {})):
        expansion(home, name, size=100, used=used, models=models)
    weight_files.make_room(100, 500)
    assert names(home) == ["gone", "new", "old", "unknown"]
    weight_files.make_room(100, 400)
    assert names(home) == ["gone", "new", "old"]
    weight_files.make_room(100, 300)
    assert names(home) == ["new", "old"]
    weight_files.make_room(150, 300)
    assert names(home) == ["new"]
    with pytest.raises(OSError, match="NESTLING_WEIGHT_CACHE_GB allows"):
        weight_files.make_room(301, 300)
    assert names(home) == ["new"]


def test_use_is_noted_in_the_order_of_eviction(starter_q8: Path, home: Path, tmp_path: Path) -> None:
    shutil.copy(starter_q8, tmp_path / "other.gguf")
    write_other_bytes(tmp_path / "other.gguf")
    vectors(starter_q8)
    [first] = kept(home)
    vectors(tmp_path / "other.gguf")
    vectors(starter_q8)
    assert [one.path == first for one in weight_files.expansions()] == [False, True]


@pytest.mark.parametrize("limit", ["0", "0.000001"])
def test_the_limit_holds_and_is_said(starter_q8: Path, home: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weight_files.LIMIT_VARIABLE, limit)
    with pytest.warns(RuntimeWarning, match="NESTLING_WEIGHT_CACHE_GB allows.*kept in memory"):
        vectors(starter_q8)
    assert not kept(home)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("limit", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(starter_q8: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weight_files.LIMIT_VARIABLE, limit)
    with pytest.raises(UsageError, match="expected a number of gigabytes"):
        vectors(starter_q8)


@pytest.mark.parametrize("spoilt", ["", "[]", "{}", '{"models": 3}', '{"models": {"a": {"b": 1}}}'])
def test_what_stands_beside_the_weights_may_be_spoilt(starter_q8: Path, home: Path, spoilt: str) -> None:
    first = vectors(starter_q8)
    kept(home)[0].with_suffix(".json").write_text(spoilt)
    assert np.array_equal(vectors(starter_q8), first)
    assert json.loads(kept(home)[0].with_suffix(".json").read_text())["models"]


def test_a_cache_that_cannot_be_written_is_read(starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = vectors(starter_q8)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("lock", "atomic_write"):
        monkeypatch.setattr(files, name, refused)
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Expansion, "matrix", never)
    assert np.array_equal(vectors(starter_q8), first)
    assert len(kept(home)) == 1


def test_a_cache_that_cannot_be_written_and_is_empty_leaves_the_weights_in_memory(
    starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "lock", refused)
    with pytest.warns(RuntimeWarning, match=r"Read-only file system; weights are expanded at every start") as said:
        vectors(starter_q8)
    assert len(said) == 1
    assert not kept(home)


@pytest.mark.usefixtures("home")
def test_without_a_home_the_weights_stay_in_memory(starter_q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(files.CACHE_VARIABLE)
    monkeypatch.setattr(files, "user_cache_path", lambda _name: Path("~/x"))
    with pytest.warns(RuntimeWarning, match="no home folder; .*kept in memory"):
        vectors(starter_q8)


def test_without_room_the_weights_stay_in_memory(starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, weight_cache.SPARE_BYTES))
    with pytest.warns(RuntimeWarning, match=r"GiB free; weights are expanded at every start and kept in memory"):
        found = vectors(starter_q8)
    assert not kept(home)
    assert np.isfinite(found).all()


def test_a_disk_that_fills_up_leaves_no_half_file(
    starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weight_cache, "_reserve", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        vectors(starter_q8)
    assert not kept(home)
    assert not list(home.glob("*.part"))


def test_an_interrupted_expansion_leaves_no_half_file(
    starter_q8: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Expansion, "matrix", stopped)
    with pytest.raises(KeyboardInterrupt):
        vectors(starter_q8)
    assert not kept(home)
    assert not list(home.glob("*.part"))


def test_removing_a_model_removes_its_expanded_weights(home: Path) -> None:
    vectors(local.resolve("starter-code:Q8_0"))
    (expanded_file,) = kept(home)
    size = expanded_file.stat().st_size
    gone, freed = removal.remove("starter-code:Q8_0")
    assert str(expanded_file) in gone
    assert freed > size
    assert not kept(home)
    assert not list(home.glob("*.json"))


def test_removing_a_model_leaves_a_namesakes_weights_and_those_that_a_copy_shares(home: Path, tmp_path: Path) -> None:
    model = local.resolve("starter-code:Q8_0")
    namesake, copy = tmp_path / "mine" / model.name, tmp_path / "copy.gguf"
    namesake.parent.mkdir()
    for path in (namesake, copy):
        shutil.copy(model, path)
    write_other_bytes(namesake)
    for path in (model, namesake):
        vectors(path)
    removal.remove("starter-code:Q8_0")
    assert len(kept(home)) == 1
    vectors(local.resolve("starter-code:Q8_0"))
    vectors(copy)
    removal.remove("starter-code:Q8_0")
    assert len(kept(home)) == 2
    assert not any(one.is_stale for one in weight_files.expansions())


def test_the_command_shows_and_cleans(starter_q8: Path, home: Path, tmp_path: Path) -> None:
    shutil.copy(starter_q8, tmp_path / "gone.gguf")
    write_other_bytes(tmp_path / "gone.gguf")
    for path in (starter_q8, tmp_path / "gone.gguf"):
        vectors(path)
    (tmp_path / "gone.gguf").unlink()
    size = sum(path.stat().st_size for path in kept(home))
    found = json.loads(nestling("cache", "--json").out)
    assert (found["folder"], found["limit_bytes"], found["size_bytes"]) == (str(home), 20 * 10**9, size)
    assert [(one["models"], one["stale"]) for one in found["expansions"]] == [
        ([str(tmp_path / "gone.gguf")], True),
        ([str(starter_q8)], False),
    ]
    assert "stale" in nestling("cache").out
    assert len(kept(home)) == 2
    assert "deleted" in nestling("cache", "--clean").out
    assert not list(home.iterdir())
    assert json.loads(nestling("cache", "--json").out)["expansions"] == []
