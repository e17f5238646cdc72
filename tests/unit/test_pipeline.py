import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestling._util.files import sha256_file
from nestling._util.progress import Progress, Steps, no_progress, silent
from nestling.errors import CheckpointError
from nestling.formats.card import SUMS, Card, card_path
from nestling.formats.gguf import GGUFFile
from nestling.pipeline import pipeline as module
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import BuiltFile, Pipeline, model_path
from nestling.spec import Task

KINDS = ["Q8_0", "F32"]


def build(checkpoint: Path, folder: Path, *, kinds: list[str] = KINDS, steps: Steps = silent) -> list[BuiltFile]:
    return Pipeline(Checkpoint.open(checkpoint), folder, "small", 2, steps).build([Task.CODE], kinds)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was built in one go; never changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    build(small_checkpoint, folder)
    return folder


@pytest.fixture
def built(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(undisturbed, tmp_path / "built"))


def fresh(files: list[BuiltFile]) -> list[str]:
    return [file.card.file_type for file in files if file.fresh]


def test_every_file_has_its_published_name_and_its_card(undisturbed: Path) -> None:
    names = [f"small-text-code-{kind}" for kind in ("F16", "F32", "Q8_0", "multivector")]
    assert sorted(contents(undisturbed)) == sorted(
        [".lock", SUMS, *(f"{name}{end}" for name in names for end in (".gguf", ".json"))]
    )


def test_text_matching_is_matching_in_file_names() -> None:
    path = model_path(Path("f"), family="jina-v4", task=Task.TEXT_MATCHING, file_type="Q4_K_M")
    assert path == Path("f/jina-v4-text-matching-Q4_K_M.gguf")


def test_the_float16_file_is_always_made_and_first_and_nothing_is_made_twice(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    files = build(small_checkpoint, tmp_path, kinds=["Q8_0", "F16", "Q8_0"])
    assert [file.card.file_type for file in files] == ["F16", "Q8_0"]


def test_cards_say_what_the_files_are(small_checkpoint: Path, undisturbed: Path) -> None:
    base = Card.read(undisturbed / "small-text-code-F16.gguf")
    assert base is not None
    for kind in ("F16", "F32", "Q8_0"):
        path = undisturbed / f"small-text-code-{kind}.gguf"
        file, card = GGUFFile.open(path), Card.read(path)
        assert card is not None
        assert (card.file, card.sha256, card.size_bytes) == (path.name, sha256_file(path), path.stat().st_size)
        assert (card.file_type, card.family, card.task) == (kind, "small", "code")
        assert card.source == Checkpoint.open(small_checkpoint).source
        assert card.made_from == (base.sha256 if kind == "Q8_0" else "")
        assert sum(card.tensor_types.values()) == len(file.tensors)
        stored = sum(info.size_bytes for info in file.tensors.values())
        assert card.bits_per_weight == pytest.approx(8 * stored / card.parameters, abs=1e-4)


def test_cards_hold_no_paths_of_this_machine(small_checkpoint: Path, undisturbed: Path) -> None:
    for path in undisturbed.glob("*.json"):
        text = path.read_text("utf-8")
        assert str(undisturbed.parent) not in text
        assert str(small_checkpoint.parent) not in text


def test_the_licence_goes_from_the_checkpoint_to_the_card(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", "utf-8")
    assert [file.card.licence for file in build(checkpoint, tmp_path / "out", kinds=["Q8_0"])] == ["cc-by-nc-4.0"] * 2


def test_the_same_build_gives_the_same_bytes_whatever_the_threads(
    small_checkpoint: Path, undisturbed: Path, tmp_path: Path
) -> None:
    Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "small", 1).build([Task.CODE], KINDS)
    assert contents(tmp_path) == contents(undisturbed)


def test_sha256sum_checks_the_folder(undisturbed: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=undisturbed, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(": OK\n") == 4


# Taking up where the last run stopped.


def test_a_rerun_keeps_every_file(small_checkpoint: Path, built: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in built.glob("*.gguf")}
    told: list[str] = []

    def steps(name: str) -> Progress:
        told.append(name)
        return no_progress

    files = build(small_checkpoint, built, steps=steps)
    assert (fresh(files), told) == ([], [])
    assert {path.name: path.stat().st_mtime_ns for path in built.glob("*.gguf")} == before


def flip_last_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-40, 2)
        byte = file.read(1)
        file.seek(-40, 2)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_card(path: Path) -> None:
    card_path(path).unlink()


def broken_card(path: Path) -> None:
    card_path(path).write_text("{", "utf-8")


def another_versions_card(path: Path) -> None:
    card = json.loads(card_path(path).read_text("utf-8"))
    card_path(path).write_text(json.dumps(card | {"new_field": 1}), "utf-8")


@pytest.mark.parametrize("spoil", [flip_last_byte, cut, Path.unlink, without_card, broken_card, another_versions_card])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_spoilt_file_is_made_again_and_only_that_one(
    small_checkpoint: Path, undisturbed: Path, built: Path, spoil: Callable[[Path], Any], kind: str
) -> None:
    spoil(built / f"small-text-code-{kind}.gguf")
    assert fresh(build(small_checkpoint, built)) == [kind]
    assert contents(built) == contents(undisturbed)


def test_another_checkpoint_is_built_anew(small_checkpoint: Path, built: Path, tmp_path: Path) -> None:
    before = contents(built)
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "other"))
    flip_last_byte(checkpoint / "model-00001-of-00002.safetensors")
    assert fresh(build(checkpoint, built)) == ["F16", "Q8_0", "F32"]
    after = contents(built)
    assert all(after[name] != before[name] for name in before if name != ".lock")


def test_another_version_builds_anew(small_checkpoint: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__version__", "99")
    assert fresh(build(small_checkpoint, built)) == ["F16", "Q8_0", "F32"]


def test_more_file_types_are_added(small_checkpoint: Path, built: Path) -> None:
    assert fresh(build(small_checkpoint, built, kinds=["Q8_0", "BF16", "Q6_K"])) == ["BF16", "Q6_K"]
    assert len((built / SUMS).read_text().splitlines()) == 6  # the F32 file's and the multi-vector head's stay


# What stands in the way.


def test_the_folder_is_locked_while_it_is_built(small_checkpoint: Path, tmp_path: Path) -> None:
    def steps(_name: str) -> Progress:
        with (tmp_path / ".lock").open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return no_progress

    assert fresh(build(small_checkpoint, tmp_path, steps=steps)) == ["F16", "Q8_0", "F32"]


@pytest.mark.parametrize("moment", [1, 20, 60])
def test_an_interrupt_leaves_no_half_file_and_the_rerun_goes_on(
    small_checkpoint: Path, undisturbed: Path, tmp_path: Path, moment: int
) -> None:
    calls = 0

    def told(_done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small_checkpoint, tmp_path, steps=lambda _name: told)
    assert not list(tmp_path.glob("*.part"))
    for path in tmp_path.glob("*.gguf"):
        GGUFFile.open(path)
    build(small_checkpoint, tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


def test_a_broken_checkpoint_leaves_what_was_there(small_checkpoint: Path, built: Path, tmp_path: Path) -> None:
    before = contents(built)
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "broken"))
    cut(checkpoint / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        build(checkpoint, built)
    assert contents(built) == before
