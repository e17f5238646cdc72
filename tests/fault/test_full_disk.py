"""Every command that writes, on a disk that is full: one line, exit code 1, nothing half under a final name, and
with room again the same command goes on to the same bytes."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.command_line import nestling
from tests.full_disk import Full, largest_file, little_room, mount, unmount
from tests.hub_server import HubServer

from nestling.models import hub, local

FULL = r"No space left on device|File too large"
REPOSITORY = "org/repo"
SHARES = (0.0, 0.05, 0.3, 0.7, 0.97)
"""Of what a command writes, how much there is room for."""
Arguments = Sequence[str | Path]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text: two chunks of the tiny tokenizers' bytes."""
    path = tmp_path_factory.mktemp("calibration") / "short.txt"
    path.write_text("A folder is locked; a killed holder loses its lock. " * 60)
    return path


@pytest.fixture(params=["largest file", "little room"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Full, Path]]:
    """A way to be full, and the folder for which it holds."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "largest file":
        yield largest_file, folder
        return
    if reason := mount(folder):
        pytest.skip(f"a small file system needs root ({reason}); the limit on a file's size is tested beside this")
    try:
        yield little_room, folder
    finally:
        unmount(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks by its name; what a download keeps to go on from is apart."""
    names = (path for path in folder.rglob("*") if path.is_file() and not {".lock", ".locks"} & set(path.parts))
    return {str(path.relative_to(folder)): path.read_bytes() for path in names if path.suffix != ".incomplete"}


def goes_on(arguments: Arguments, disk: tuple[Full, Path], *, rooms: Callable[[dict[str, bytes]], list[int]]) -> int:
    """Run the command undisturbed, then with too little room, then with enough; -> how often it was too little."""
    full, folder = disk
    assert nestling(*arguments).code == 0
    wanted, refusals = contents(folder), 0
    for room in rooms(wanted):
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with full(folder, room):
            done = nestling(*arguments)
            left = contents(folder)
        left.pop(".ballast", None)
        if done.code:
            refusals += 1
            assert (done.code, done.raw, len(done.err.splitlines())) == (1, b"", 1), done
            assert done.err.startswith("nestling: ")
            assert any(words in done.err for words in FULL.split("|")), done.err
        assert all(wanted[name] == raw for name, raw in left.items()), (room, sorted(left))
        assert nestling(*arguments).code == 0
        assert contents(folder) == wanted
    return refusals


def shares(wanted: dict[str, bytes]) -> list[int]:
    whole = sum(map(len, wanted.values()))
    return [int(share * whole) for share in SHARES]


def test_convert(disk: tuple[Full, Path], small_checkpoint: Path) -> None:
    arguments: Arguments = ["convert", small_checkpoint, "--task", "code", "--family", "s", "--out", disk[1] / "x.gguf"]
    assert goes_on(arguments, disk, rooms=shares) == len(SHARES)


def test_imatrix(disk: tuple[Full, Path], tiny_models: dict[str, Path], calibration: Path) -> None:
    arguments: Arguments = ["imatrix", tiny_models["F32"], "--calibration", calibration, "--threads", "1", "--out",
                 disk[1] / "x.gguf"]  # fmt: skip
    assert goes_on(arguments, disk, rooms=shares) == len(SHARES)


def test_quantize(disk: tuple[Full, Path], tiny_models: dict[str, Path]) -> None:
    arguments: Arguments = ["quantize", tiny_models["F32"], "Q4_K_M", "--threads", "1", "--out", disk[1] / "x.gguf"]
    assert goes_on(arguments, disk, rooms=shares) == len(SHARES)


def test_build(disk: tuple[Full, Path], small_checkpoint: Path, calibration: Path) -> None:
    """Room for this and that many of its files: the F16 file, the matrix, the quantized ones, their cards, the sums."""
    full, folder = disk
    arguments: Arguments = ["build", small_checkpoint, "--task", "code", "--quant", "Q8_0,Q4_K_M",
                 "--family", "small", "--threads", "1", "--calibration", calibration, "--json",
                 "--out", folder]  # fmt: skip

    def rooms(wanted: dict[str, bytes]) -> list[int]:
        sizes = sorted(map(len, wanted.values()))
        if full is largest_file:
            return [size - 1 for size in sizes]
        return [round(sum(sizes) * share / 10) for share in range(10)]

    assert goes_on(arguments, disk, rooms=rooms) >= 5


def test_pull(
    disk: tuple[Full, Path], hub_server: HubServer, hub_cache: Path, tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another program fills the disk after it was asked for room."""
    assert not hub_cache.exists()
    folder = disk[1]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("nestling.models.hub.client._check_space", lambda *_: None)
    path = tiny_models["Q8_0"]
    hub_server.repositories[REPOSITORY] = {path.name: path.read_bytes(), "tiny-Q8_0.json": b'{"a": 1}'}
    rooms = [0, 1, 5000, path.stat().st_size // 2, path.stat().st_size - 1]
    assert goes_on(["pull", f"{REPOSITORY}:Q8_0"], disk, rooms=lambda _: rooms) >= 4
    assert local.resolve(f"{REPOSITORY}:Q8_0").read_bytes() == path.read_bytes()
    assert hub.known_hash(local.resolve(f"{REPOSITORY}:Q8_0"))
