"""Expanded matrices: kept on the disk for large files, made anew for small ones, and never half."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from nestling._util import files
from nestling.engine.openvino import int8_groups, weight_cache
from nestling.engine.protocol import plain
from nestling.engine.registry import EngineName, load_engine
from nestling.formats.gguf import GGUFFile
from nestling.models import local

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

    monkeypatch.setattr(int8_groups, "expand", never)
    vectors(starter_q8)
    assert kept(home)[0].stat().st_mtime_ns == before


def test_a_file_that_changed_is_expanded_again(starter_q8: Path, home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "one.gguf"
    shutil.copy(starter_q8, copy)
    vectors(copy)
    os.utime(copy, ns=(1, 1))
    vectors(copy)
    assert len(kept(home)) == 2


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

    monkeypatch.setattr(int8_groups, "expand", stopped)
    with pytest.raises(KeyboardInterrupt):
        vectors(starter_q8)
    assert not kept(home)
    assert not list(home.glob("*.part"))


def test_removing_a_model_removes_its_expanded_weights(home: Path) -> None:
    vectors(local.resolve("starter-code:Q8_0"))
    (expanded_file,) = kept(home)
    size = expanded_file.stat().st_size
    gone, freed = local.remove("starter-code:Q8_0")
    assert str(expanded_file) in gone
    assert freed > size
    assert not kept(home)
