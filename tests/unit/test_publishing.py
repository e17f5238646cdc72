"""A folder of built files as a repository: the card, what is refused, and a round trip over a hub on loopback."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tests.command_line import nestling
from tests.hub_server import COMMIT, HubServer

from nestling._util import files
from nestling.errors import FileFormatError, UsageError
from nestling.formats.card import SUMS, Card, card_path
from nestling.models import hub_models, local, removal
from nestling.models.hub import HubReference
from nestling.models.publish import LICENCE, README, Publication, plan, send
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline
from nestling.spec import Task

REPOSITORY = "some-org/small-text-code-GGUF"
FILES = ("small-text-code-F16.gguf", "small-text-code-Q8_0.gguf")
PROJECTOR = "small-text-code-multivector.gguf"
HEAD = "---\nlicense: other\nlicense_name: no-cooking\nlicense_link: LICENSE.txt\n---\n# small\n"


@pytest.fixture(scope="module")
def built(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task's files of a checkpoint with a licence; copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("publishing")
    checkpoint = Path(shutil.copytree(small_checkpoint, folder / "checkpoint"))
    (checkpoint / "README.md").write_text(HEAD, "utf-8")
    Pipeline(Checkpoint.open(checkpoint), folder / "built", "small", 1).build([Task.CODE], ["Q8_0"])
    return folder / "built"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "built"))


def head(publication: Publication) -> dict[str, Any]:
    """The YAML head, as huggingface_hub reads it."""
    found: dict[str, Any] = huggingface_hub.ModelCard(publication.readme).data.to_dict()  # type: ignore[no-untyped-call]
    return found


def test_the_head_is_what_the_hub_reads(built: Path) -> None:
    assert head(plan(built, REPOSITORY, base_model="some-org/small")) == {
        "license": "other", "license_name": "no-cooking", "license_link": "LICENSE.md",
        "base_model": "some-org/small", "base_model_relation": "quantized", "pipeline_tag": "feature-extraction",
        "tags": ["gguf", "embeddings", "sentence-similarity", "matryoshka", "llama.cpp", "nestling"],
    }  # fmt: skip


def test_a_licence_that_is_linked_to_inside_the_checkpoint_comes_along(folder: Path) -> None:
    note = plan(folder, REPOSITORY).files[LICENCE]
    assert isinstance(note, bytes)
    assert all(part in note.decode() for part in ("# no-cooking", "made from `sha256:", "`LICENSE.txt` there"))
    (folder / "LICENSE").write_text("Do not cook.")
    made = plan(folder, REPOSITORY)
    assert (head(made)["license_link"], made.files["LICENSE"]) == ("LICENSE", folder / "LICENSE")
    assert LICENCE not in made.files


def test_the_starters_card_is_one_that_the_hub_takes(starter_q8: Path, empty_hub: HubServer) -> None:
    """`license: other`, judged by huggingface_hub's own validation, which asks the hub, and by the hub's rules."""
    done = nestling("publish", starter_q8.parent, REPOSITORY, "--task", "retrieval", "--dry-run")
    assert (done.code, done.err, empty_hub.requests) == (0, "", [])
    made = plan(starter_q8.parent, REPOSITORY, task=Task.RETRIEVAL)
    assert head(made).items() >= {
        "license": "other", "license_name": "mixed-see-training-data", "license_link": LICENCE,
    }.items()  # fmt: skip
    card = huggingface_hub.ModelCard(made.readme)
    card.validate()
    assert [one.path for one in empty_hub.requests] == ["/api/validate-yaml"]
    card = huggingface_hub.ModelCard(made.readme.replace(f"license_link: {LICENCE}", "license_link: README.md"))
    with pytest.raises(ValueError, match="license_link"):
        card.validate()


def test_the_base_model_is_the_cards_when_it_came_from_the_hub(folder: Path) -> None:
    for path in folder.glob("*.gguf"):
        card = Card.read(path)
        assert card
        replace(card, source=f"some-org/origin@{'a' * 40}").write(folder)
    assert head(plan(folder, REPOSITORY))["base_model"] == "some-org/origin"


def test_weights_of_unknown_origin_claim_none(built: Path) -> None:
    assert "base_model" not in plan(built, REPOSITORY).readme


def test_the_card_says_how_the_files_are_used(built: Path) -> None:
    text = plan(built, REPOSITORY, scores="## Scores\n\n| a |\n| --- |\n| 0.5 |\n").readme
    for part in (
        "| query | `Query: ` |",
        "| passage | `Passage: ` |",
        "16, 32, 64 dimensions",
        f"nestling pull {REPOSITORY}:Q8_0",
        f"llama-server -hf {REPOSITORY}:Q8_0 --embedding --pooling mean",
        '"input": ["Query: A beautiful sunset',
        "| 0.5 |",
    ):
        assert part in text
    for name in FILES:
        card = Card.read(built / name)
        assert card
        size = f"{card.size_bytes / 2**20:,.1f}"
        assert f"| {name} | {card.bits_per_weight:.2f} | {size} | `{card.sha256}` |" in text


def test_the_files_are_the_models_their_cards_and_the_sums(built: Path) -> None:
    made = plan(built, REPOSITORY)
    files = (*FILES, PROJECTOR)
    assert set(made.files) == {README, SUMS, LICENCE, *files, *(name.replace(".gguf", ".json") for name in files)}
    assert PROJECTOR in made.readme
    assert made.sizes()[FILES[1]] == (built / FILES[1]).stat().st_size
    sums = made.files[SUMS]
    assert isinstance(sums, bytes)
    assert sorted(sums.splitlines()) == sorted((built / SUMS).read_bytes().splitlines())


def spoil(folder: Path) -> None:
    with (folder / FILES[1]).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def remove_all(folder: Path) -> None:
    for path in folder.glob("*.gguf"):
        path.unlink()


def recard(**changes: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        card = Card.read(folder / FILES[1])
        assert card
        replace(card, **changes).write(folder)  # type: ignore[arg-type]

    return apply


FAULTS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no card": (lambda folder: card_path(folder / FILES[1]).unlink(), FileFormatError, "Q8_0.gguf: no card"),
    "another version's card": (
        lambda folder: card_path(folder / FILES[1]).write_text("{}"), FileFormatError, "not a card of this",
    ),
    "a flipped bit": (spoil, FileFormatError, "Q8_0.gguf: its card is for another file"),
    "no licence": (recard(licence=""), FileFormatError, "Q8_0.gguf: no licence"),
    "two licences": (recard(licence="mit"), FileFormatError, "different licences"),
    "two sources": (recard(source="sha256:1"), FileFormatError, "different sources"),
    "two families": (recard(family="x"), FileFormatError, "different families"),
    "two tasks": (
        lambda folder: shutil.copy(folder / FILES[0], folder / "small-text-retrieval-F16.gguf"),
        UsageError, "files for code, retrieval; choose one with --task",
    ),
    "a head without a card": (
        lambda folder: card_path(folder / PROJECTOR).unlink(), FileFormatError, "multivector.gguf: no card",
    ),
    "a model as the head": (
        lambda folder: shutil.copy(folder / FILES[0], folder / PROJECTOR), FileFormatError, "architecture 'qwen2vl'",
    ),
    "no files": (remove_all, UsageError, "no file"),
    "no folder": (shutil.rmtree, UsageError, "no file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_published(folder: Path, fault: str) -> None:
    change, error, message = FAULTS[fault]
    change(folder)
    with pytest.raises(error, match=message):
        plan(folder, REPOSITORY)


def test_one_task_of_several_is_named(folder: Path) -> None:
    shutil.copy(folder / FILES[0], folder / "small-text-retrieval-F16.gguf")
    made = plan(folder, REPOSITORY, task=Task.CODE)
    assert {name for name in made.files if name.endswith(".gguf")} == {*FILES, PROJECTOR}


@pytest.mark.parametrize("repository", ["name", "org/name:Q8_0", "hf.co/org/name", "a/b/c", "../x", ""])
def test_a_repository_is_an_organisation_and_a_name(built: Path, repository: str) -> None:
    with pytest.raises(UsageError, match="expected org/name"):
        plan(built, repository)


# Over the network: a hub on loopback.


@pytest.fixture
def empty_hub(hub_server: HubServer, hub_cache: Path) -> HubServer:
    assert not hub_cache.exists()
    return hub_server


def test_without_yes_nothing_is_sent(built: Path, empty_hub: HubServer) -> None:
    done = nestling("publish", built, REPOSITORY)
    assert (done.code, done.err, empty_hub.requests) == (0, "", [])
    assert "Nothing was uploaded; use --yes to upload." in done.out
    assert all(part in done.out for part in (*FILES, README, SUMS, "license: other", "## Prefixes"))


def test_published_then_pulled_then_shown_then_removed(built: Path, empty_hub: HubServer) -> None:
    done = nestling("publish", built, REPOSITORY, "--yes")
    assert (done.code, done.err) == (0, "")
    assert f"uploaded: {empty_hub.endpoint}/{REPOSITORY}/commit/" in done.out
    assert empty_hub.repositories[REPOSITORY][FILES[1]] == (built / FILES[1]).read_bytes()
    reference = f"{REPOSITORY}:Q8_0"
    pulled_path = Path(json.loads(nestling("pull", reference, "--json").out)[0]["path"])
    assert pulled_path.read_bytes() == (built / FILES[1]).read_bytes()
    listed = json.loads(nestling("list", "--json").out)
    assert {"reference": reference, "size_bytes": pulled_path.stat().st_size, "path": str(pulled_path)} in listed
    shown = json.loads(nestling("show", reference, "--json").out)
    card = Card.read(built / FILES[1])
    assert card
    assert (shown["card"]["sha256"], shown["file"]["hub_hash"], shown["spec"]["task"]) == (card.sha256,) * 2 + ("code",)
    assert shown["file"]["tensor_types"] == card.tensor_types
    assert "small" in nestling("show", reference).out
    size = pulled_path.stat().st_size + card_path(pulled_path).stat().st_size
    removed = json.loads(nestling("rm", reference, "--json").out)
    assert removed == {"removed": [str(pulled_path), str(card_path(pulled_path))], "freed_bytes": size}
    assert hub_models.find(HubReference(REPOSITORY)) is None
    assert nestling("show", reference).code == 1


def test_it_can_be_a_private_repository(built: Path, empty_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create = huggingface_hub.HfApi.create_repo

    def watched(*arguments: object, private: bool, **more: object) -> object:
        asked.append(private)
        return create(*arguments, private=private, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", watched)
    send(plan(built, REPOSITORY), private=True)
    assert (asked, len(empty_hub.commits)) == ([True], 1)


def test_build_from_a_repository(small_checkpoint: Path, empty_hub: HubServer, tmp_path: Path) -> None:
    paths = [path for path in small_checkpoint.rglob("*") if path.is_file()]
    files = {str(path.relative_to(small_checkpoint)): path.read_bytes() for path in paths}
    empty_hub.repositories["some-org/full"] = files | {"README.md": HEAD.encode(), "modeling.py": b"raise SystemExit"}
    out = tmp_path / "out"
    done = nestling("build", "some-org/full", "--task", "code", "--quant", "F16", "--out", out, "--family", "small")
    assert (done.code, done.err) == (0, "")
    card = Card.read(out / FILES[0])
    assert card
    assert (card.source, card.licence) == (f"some-org/full@{COMMIT}", "other")
    assert head(plan(out, REPOSITORY))["base_model"] == "some-org/full"


# Removing what was built.


def test_rm_removes_a_built_file_with_its_card_and_its_sum(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(folder.parent / "cache"))
    home = local.family_folder("small")
    shutil.copytree(folder, home)
    freed = sum((home / name).stat().st_size for name in (FILES[1], FILES[1].replace(".gguf", ".json")))
    assert removal.remove("small-code:Q8_0") == (
        [str(home / FILES[1]), str(home / FILES[1].replace("gguf", "json"))],
        freed,
    )
    assert [path.name for path in sorted(home.glob("small*"))] == [
        name.replace("gguf", end) for name in (FILES[0], PROJECTOR) for end in ("gguf", "json")
    ]
    assert FILES[1] not in (home / SUMS).read_text()
    removal.remove("small")
    assert not list(home.glob("small*"))


@pytest.mark.parametrize(
    ("reference", "code", "part"),
    [
        ("nobody-code:Q8_0", 1, "nobody-code:Q8_0: not on this machine"),
        ("org/absent:Q8_0", 1, "org/absent:Q8_0: not in the hub's cache"),
        ("./x.gguf", 2, "not a path"),
        ("x y", 2, "name[-task][:QUANT]"),
    ],
)
def test_rm_of_what_is_not_there(reference: str, code: int, part: str) -> None:
    done = nestling("rm", reference)
    assert (done.code, done.raw, part in done.err) == (code, b"", True), done.err
