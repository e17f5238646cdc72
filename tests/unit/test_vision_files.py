"""A vision tower among a family's files: built, kept, found for a model, shown, verified, removed, sent and pulled."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.command_line import nestling
from tests.hub_server import HubServer
from tests.unit.test_mmproj import changed

from nestling._util import files
from nestling.errors import FileFormatError, ModelNotFoundError, UsageError
from nestling.evaluation.verify import verify
from nestling.formats.card import Card
from nestling.formats.gguf import Field, GGUFFile
from nestling.formats.mmproj import OURS
from nestling.formats.quant_types import QuantType
from nestling.models import hub_models, local, removal
from nestling.models.families import JINA_V4
from nestling.models.file_spec import spec_of
from nestling.models.publish import plan
from nestling.models.towers import stored_towers, tower_of
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import ModelSpec, Task, prefixes_for

TOWER = "mmproj-mine-BF16.gguf"


@pytest.fixture(scope="module")
def folder(vision_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text model and the tower."""
    made = tmp_path_factory.mktemp("family")
    Pipeline(Checkpoint.open(vision_checkpoint), made, "mine", 1).build([Task.CODE], ["Q8_0"])
    return made


def spec(family: str) -> ModelSpec:
    return ModelSpec(family, Task.CODE, (64,), 100, prefixes_for(Task.CODE))


def test_a_build_makes_the_tower_with_its_card_and_keeps_it(folder: Path, vision_checkpoint: Path) -> None:
    card = Card.read(folder / TOWER)
    assert card
    assert (card.file_type, card.family, card.task) == ("BF16", "mine", "vision")
    assert card.sha256 == files.sha256_file(folder / TOWER)
    assert f"{card.sha256}  {TOWER}\n" in (folder / "SHA256SUMS").read_text()
    assert not Pipeline(Checkpoint.open(vision_checkpoint), folder, "mine", 1).tower().fresh


def test_a_base_with_adapters_gets_it_too(vision_checkpoint: Path, tmp_path: Path) -> None:
    Pipeline(Checkpoint.open(vision_checkpoint), tmp_path, "mine", 1).build_base(["F16"])
    assert (tmp_path / TOWER).exists()


def test_a_checkpoint_without_a_tower_builds_without(small_checkpoint: Path, tmp_path: Path) -> None:
    Pipeline(Checkpoint.open(small_checkpoint), tmp_path, "mine", 1).build([Task.CODE], ["F16"])
    assert not list(tmp_path.glob("mmproj*"))
    done = nestling("vision", small_checkpoint, "--family", "s", "--out", tmp_path / "v.gguf")
    assert (done.code, "vision_config is missing: this checkpoint has no vision tower" in done.err) == (1, True)


def test_the_verb_writes_the_same_file_under_any_name(folder: Path, vision_checkpoint: Path, tmp_path: Path) -> None:
    done = nestling("vision", vision_checkpoint, "--family", "mine", "--out", tmp_path / "v.gguf", "--json")
    made = json.loads(done.out)
    assert (done.code, done.err, made["path"]) == (0, "", str(tmp_path / "v.gguf"))
    assert (tmp_path / "v.gguf").read_bytes() == (folder / TOWER).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.gguf", "v.json"]


def test_show_inspect_and_verify_know_it(folder: Path) -> None:
    shown = json.loads(nestling("show", folder / TOWER, "--json").out)
    assert (shown["spec"]["blocks"], shown["spec"]["max_pixels"], shown["card"]["file"]) == (4, 602112, TOWER)
    assert "nestling.vision.window" in nestling("inspect", folder / TOWER).out
    done = nestling("verify", folder / TOWER, "--json")
    checks = {one["check"]: one["passed"] for one in json.loads(done.out)}
    assert done.code == 0
    assert checks == dict.fromkeys(("structure", "hash", "weights", "alone = in a batch", "openvino = reference"), True)


def test_verify_names_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    broken = np.full(64, np.nan, np.float32)
    path = changed(folder / TOWER, tmp_path / TOWER, tensors={"mm.2.bias": (broken, QuantType.F32)})
    assert [(one.name, one.detail) for one in verify(path) if not one.passed] == [
        ("weights", "mm.2.bias holds NaN or infinity")
    ]
    path = changed(folder / TOWER, tmp_path / TOWER, tensors={"mm.2.bias": None})
    (only,) = verify(path)
    assert (only.passed, "mm.2.bias: expected shape (64,), found no such tensor" in only.detail) == (False, True)


def test_it_is_no_text_model(folder: Path) -> None:
    with pytest.raises(FileFormatError, match="a vision tower, not a model"):
        spec_of(GGUFFile.open(folder / TOWER))


def test_it_is_not_quantized(folder: Path, tmp_path: Path) -> None:
    done = nestling("quantize", folder / TOWER, "Q8_0", "--out", tmp_path / "q.gguf")
    assert (done.code, "a vision tower, which stays BF16: expected a text model's file" in done.err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_it_is_found_beside_the_model_or_in_its_familys_folder(folder: Path, tmp_path: Path) -> None:
    model = model_path(folder, family="mine", task=Task.CODE, file_type="Q8_0")
    assert tower_of(model, spec("mine")) == folder / TOWER
    elsewhere = tmp_path / model.name
    with pytest.raises(UsageError, match=r"Q8_0\.gguf: no vision tower \(mmproj-mine-BF16.*`nestling vision CH"):
        tower_of(elsewhere, spec("mine"))
    with pytest.raises(UsageError, match="or download it with `nestling pull jina-v4-retrieval --images`"):
        tower_of(elsewhere, spec("jina-v4"))


def test_it_is_listed_and_goes_with_the_last_model_of_its_family(
    vision_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    home = local.family_folder("mine")
    Pipeline(Checkpoint.open(vision_checkpoint), home, "mine", 1).build([Task.CODE, Task.RETRIEVAL], ["F16"])
    assert stored_towers() == [home / TOWER]
    rows = {row["reference"]: row["path"] for row in json.loads(nestling("list", "--json").out)}
    assert rows["mmproj-mine-BF16 (images)"] == str(home / TOWER)
    removal.remove("mine-code")
    assert (home / TOWER).exists()
    gone, _ = removal.remove("mine-retrieval")
    assert {str(home / TOWER), str((home / TOWER).with_suffix(".json"))} <= set(gone)
    assert not list(home.glob("*.gguf"))


def test_it_is_published_with_its_models(folder: Path, tmp_path: Path, vision_checkpoint: Path) -> None:
    licensed = Path(shutil.copytree(vision_checkpoint, tmp_path / "checkpoint"))
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    Pipeline(Checkpoint.open(licensed), tmp_path / "out", "mine", 1).build([Task.CODE], ["F16"])
    made = plan(tmp_path / "out", "org/mine")
    assert {TOWER, TOWER.replace(".gguf", ".json")} <= made.files.keys()
    assert f"`{TOWER}` is for images" in made.readme
    sums = made.files["SHA256SUMS"]
    assert isinstance(sums, bytes)
    assert TOWER in sums.decode()
    changed(folder / TOWER, tmp_path / "out" / TOWER, fields={f"{OURS}source": Field.string("org/other@1")})
    with pytest.raises(
        FileFormatError, match=r"mmproj-mine-BF16\.gguf: made for another model: its checkpoint is org/other@1"
    ):
        plan(tmp_path / "out", "org/mine")


def test_pull_brings_it_when_it_is_asked_for(hub_server: HubServer, hub_cache: Path) -> None:
    assert hub_cache
    repository = JINA_V4.repository_of(Task.RETRIEVAL)
    model, tower = "jina-embeddings-v4-text-retrieval-Q8_0.gguf", "mmproj-jina-embeddings-v4-retrieval-BF16.gguf"
    half = "mmproj-jina-embeddings-v4-retrieval-F16.gguf"
    hub_server.repositories[repository] = {name: name.encode() for name in (model, tower, half)}
    (wanted,) = hub_models.references("jina-v4-retrieval")
    (alone,) = hub_models.pull(wanted)
    with pytest.raises(UsageError, match="no vision tower"):
        tower_of(alone, spec("jina-v4"))
    assert [path.name for path in hub_models.pull(wanted, images=True)] == [model, tower]
    assert tower_of(alone, spec("jina-v4")).name == tower
    assert tower_of(Path("elsewhere.gguf"), spec("jina-v4")).name == tower
    assert tower in [path.name for path in stored_towers()]
    (code,) = hub_models.references("jina-v4-code")
    hub_server.repositories[code.repository] = {"jina-embeddings-v4-text-code-Q8_0.gguf": b"code"}
    with pytest.raises(ModelNotFoundError, match=r"code-GGUF: no vision tower \(mmproj"):
        hub_models.pull(code, images=True)
