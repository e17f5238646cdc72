import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nestling._util import files
from nestling._util.files import atomic_write, lock, sha256_file
from nestling._util.progress import no_progress
from nestling.errors import BuildError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_raise(path: Path, error: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


def test_a_whole_file_gets_its_name_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "x.bin"
    with atomic_write(target) as file:
        file.write(b"abc")
        assert names(target.parent) == ["x.bin.part"]
    assert target.read_bytes() == b"abc"
    assert names(target.parent) == ["x.bin"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), OSError(errno.ENOSPC, "full")])
def test_whatever_is_raised_no_half_file_stays(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_and_raise(tmp_path / "x", error)
    assert names(tmp_path) == []


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(target, KeyboardInterrupt())
    assert target.read_bytes() == b"old"
    with atomic_write(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"a much longer half file of an earlier run")
    with atomic_write(tmp_path / "x") as file:
        file.write(b"short")
    assert (tmp_path / "x").read_bytes() == b"short"
    assert names(tmp_path) == ["x"]


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x") as first:
        first.write(b"first")
        with pytest.raises(BuildError, match=r"x\.part: another run is writing"):
            write_and_raise(tmp_path / "x", ValueError("not reached"))
        assert names(tmp_path) == ["x.part"]
    assert (tmp_path / "x").read_bytes() == b"first"


def test_a_writer_that_opened_the_part_just_before_it_was_renamed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is free again by then, but the file behind it has the final name."""
    target, flock = tmp_path / "x", fcntl.flock

    def other_run_finishes_first(file: int, how: int) -> None:
        (tmp_path / "x.part").replace(target)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", other_run_finishes_first)
    with pytest.raises(BuildError, match="another run has just finished"), atomic_write(target) as file:
        file.write(b"too late")
    assert target.read_bytes() == b""


def test_the_bytes_are_synced_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, list[str]]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        whole = (tmp_path / "x.part").read_bytes() if (tmp_path / "x.part").exists() else b""
        seen.append((whole, names(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"abc")
    assert seen == [(b"abc", ["x.part"]), (b"", ["x"])]  # the file, then its folder


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuses_folders(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == tmp_path.stat().st_ino:
            raise OSError(errno.EINVAL, "not here")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses_folders)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_a_lock_is_exclusive_and_comes_free(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with lock(path, what="x"), path.open("ab") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_comes_free_when_its_block_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), lock(tmp_path / ".lock", what="x"):
        raise ValueError("no")
    with lock(tmp_path / ".lock", what="x"):
        pass


def test_who_waits_for_a_lock_says_for_whom_and_for_what(tmp_path: Path) -> None:
    take = "import sys; from pathlib import Path; from nestling._util.files import lock\n"
    take += "with lock(Path(sys.argv[1]), what='the models'): print('taken', flush=True)"
    with lock(tmp_path / ".lock", what="x"):
        child = subprocess.Popen(
            [sys.executable, "-c", take, tmp_path / ".lock"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stderr
        said = child.stderr.readline()
        assert said == f"process {child.pid} waits for process {os.getpid()}, which writes the models\n"
        assert child.poll() is None
    assert child.communicate()[0] == "taken\n"
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_lock_that_is_free_is_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".lock").write_bytes(b"12345")  # its holder was killed
    with lock(tmp_path / ".lock", what="x"):
        assert (tmp_path / ".lock").read_bytes() == str(os.getpid()).encode()
    assert not caplog.messages


@pytest.mark.parametrize("way", ["raises", "leaves"])
def test_a_user_without_a_home_is_told_what_to_set(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_knows(_name: str) -> Path:
        if way == "raises":
            raise RuntimeError("could not determine the home directory")
        return Path("~/.cache/nestling")

    monkeypatch.delenv("NESTLING_CACHE")
    monkeypatch.setattr(files, "user_cache_path", nobody_knows)
    with pytest.raises(UsageError, match="no home folder; set NESTLING_CACHE"):
        files.cache_folder()


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_nobody_is_told() -> None:
    no_progress(1, 2)
