from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling._util import files
from nestling.errors import ModelNotFoundError, UsageError
from nestling.formats.quant_types import FILE_TYPES
from nestling.models import local
from nestling.models.local import ModelReference, StoredModel
from nestling.pipeline.pipeline import model_path
from nestling.spec import Task


@pytest.mark.parametrize(
    ("text", "family", "task", "quant"),
    [
        ("starter", "starter", None, None),
        ("starter-retrieval", "starter", Task.RETRIEVAL, None),
        ("starter-retrieval:Q4_K_M", "starter", Task.RETRIEVAL, "Q4_K_M"),
        ("jina-v4-code:iq3_s", "jina-v4", Task.CODE, "IQ3_S"),
        ("jina-v4-text-matching", "jina-v4", Task.TEXT_MATCHING, None),
        ("jina-v4-matching:F16", "jina-v4", Task.TEXT_MATCHING, "F16"),
        ("jina-v4:BF16", "jina-v4", None, "BF16"),
        ("a.b_c-1-code", "a.b_c-1", Task.CODE, None),
        ("code", "code", None, None),
        ("retrieval-code", "retrieval", Task.CODE, None),
    ],
)
def test_references_are_parsed(text: str, family: str, task: Task | None, quant: str | None) -> None:
    assert ModelReference.parse(text) == ModelReference(family, task, quant)


@pytest.mark.parametrize(
    "text", ["", "-code", ":Q8_0", "a b", "starter:", "starter:Q8_0:F16", "stärter", "a/b", "..\\x"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"name\[-task\]\[:QUANT\]") as caught:
        ModelReference.parse(text)
    assert caught.value.param == "model"


def test_an_unknown_file_type_is_refused_with_the_right_ones() -> None:
    with pytest.raises(UsageError, match="Q8_0, Q6_K"):
        ModelReference.parse("starter-code:Q9_0")


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._]{0,8}", fullmatch=True),
    st.sampled_from([None, *Task]),
    st.sampled_from([None, *FILE_TYPES]),
)
def test_a_reference_is_written_as_it_is_read(family: str, task: Task | None, quant: str | None) -> None:
    model = ModelReference(family, task, quant)
    assert ModelReference.parse(str(model)) == model


@pytest.mark.parametrize(
    ("reference", "is_path"),
    [("x.gguf", True), ("./x", True), ("org/repo", True), (Path("x"), True), ("starter-code", False), ("x:F16", False)],
)
def test_paths_and_names(reference: str | Path, is_path: bool) -> None:  # noqa: FBT001 - a table's column
    assert local.looks_like_path(reference) is is_path


@pytest.mark.parametrize(
    ("reference", "task", "expected"),
    [
        ("starter", None, "starter-retrieval"),
        ("starter", "code", "starter-code"),
        ("starter:F16", "matching", "starter-text-matching:F16"),
        ("starter-code", None, "starter-code"),
        ("starter-code:Q8_0", "code", "starter-code:Q8_0"),
        ("some/file.gguf", "code", "some/file.gguf"),
    ],
)
def test_with_task(reference: str, task: str | None, expected: str) -> None:
    assert local.with_task(reference, task, default=Task.RETRIEVAL) == expected


@pytest.mark.parametrize(
    ("reference", "task", "message"),
    [
        ("starter-code", "retrieval", "task='retrieval', but model='starter-code' is for code"),
        ("starter", "clustering", "retrieval, text-matching, code"),
    ],
)
def test_a_task_that_contradicts_is_refused(reference: str, task: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        local.with_task(reference, task, default=Task.RETRIEVAL)
    assert caught.value.param == "task"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def put(family: str, task: Task, quant: str) -> Path:
    path = model_path(local.family_folder(family), family=family, task=task, file_type=quant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_the_cache_is_where_it_is_said_to_be(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local.family_folder("f") == cache / "models" / "f"
    monkeypatch.setenv(files.CACHE_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "xdg"))
    assert files.cache_folder().name == "nestling"


@pytest.mark.usefixtures("cache")
def test_a_named_model_is_found_under_its_published_name() -> None:
    path = put("jina-v4", Task.TEXT_MATCHING, "Q8_0")
    assert path.name == "jina-v4-text-matching-Q8_0.gguf"
    assert local.resolve("jina-v4-text-matching") == local.resolve("jina-v4-matching:q8_0") == path


def test_a_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert local.resolve(tmp_path / "x.gguf") == local.resolve(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("absent.gguf", ModelNotFoundError, "absent.gguf: no such file; `nestling list`"),
        ("org/repo", ModelNotFoundError, "org/repo: no such file"),
        ("jina-v4-code", ModelNotFoundError, "jina-v4-code:Q8_0: not on this machine; make it with `nestling build"),
        ("jina-v4", UsageError, "jina-v4-retrieval, jina-v4-text-matching, jina-v4-code"),
        ("jina-v4:F16", UsageError, "jina-v4-retrieval:F16, "),
    ],
)
def test_what_leads_nowhere_says_what_would(reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        local.resolve(reference)


@pytest.mark.usefixtures("cache")
def test_a_missing_file_type_names_those_that_are_here() -> None:
    put("jina-v4", Task.CODE, "F16")
    put("jina-v4", Task.RETRIEVAL, "Q8_0")
    with pytest.raises(ModelNotFoundError, match="available: jina-v4-retrieval:Q8_0, jina-v4-code:F16"):
        local.resolve("jina-v4-code:Q4_K_M")


def test_available_lists_files_and_the_starters_defaults(cache: Path) -> None:
    starter = [StoredModel("starter", task, "Q8_0", None) for task in Task]
    assert local.available() == starter
    path, other = put("starter", Task.CODE, "Q8_0"), put("own", Task.CODE, "IQ3_S")
    (cache / "models" / "own" / "unrelated.gguf").write_bytes(b"")
    assert local.available() == [
        StoredModel("own", Task.CODE, "IQ3_S", other), StoredModel("starter", Task.CODE, "Q8_0", path), *starter[:2],
    ]  # fmt: skip


def test_the_starter_is_built_on_first_use_and_kept(starter_q8: Path, cache_folder: Path) -> None:
    assert starter_q8 == cache_folder / "models" / "starter" / "starter-text-retrieval-Q8_0.gguf"
    before = starter_q8.stat().st_mtime_ns
    told: list[str] = []

    def steps(name: str) -> Any:
        told.append(name)

    assert local.resolve("starter-retrieval", steps=steps) == starter_q8
    assert (starter_q8.stat().st_mtime_ns, told) == (before, [])


def test_a_starter_that_is_whole_is_neither_locked_nor_built_again(
    starter_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(local, "Pipeline", never)
    monkeypatch.setattr("nestling.pipeline.pipeline.lock", never)
    assert local.resolve("starter-retrieval") == starter_q8


@pytest.mark.parametrize("spoil", ["cut", "no card", "another version's", "no head", "old", "old head", "old tower"])
def test_a_starter_that_is_not_whole_is_built_again(starter_q8: Path, spoil: str) -> None:
    card, head = starter_q8.with_suffix(".json"), starter_q8.with_name("starter-text-retrieval-multivector.gguf")
    whole = starter_q8.read_bytes(), card.read_bytes(), head.read_bytes()
    if spoil == "cut":
        starter_q8.write_bytes(whole[0][:-1])
    elif spoil == "no head":
        head.unlink()
    elif spoil == "no card":
        card.unlink()
    elif spoil.startswith("old"):  # of an earlier starter
        stems = {"old": card.stem, "old head": head.stem, "old tower": "mmproj-starter-BF16"}
        old = card.with_name(stems[spoil] + ".json")
        old.write_text(old.read_text().replace('"sha256:', '"sha256:0'))
    else:
        card.write_text(card.read_text().replace("nestling ", "nestling 99."))
    assert local.resolve("starter-retrieval") == starter_q8
    assert (starter_q8.read_bytes(), card.read_bytes(), head.read_bytes()) == whole


@pytest.mark.parametrize(
    ("reference", "meant"),
    [("startr", "starter"), ("startr-retrieval", "starter"), ("starter-retrievel:Q8_0", "starter-retrieval"),
     ("jina-v5-code", "jina-v4")],
)  # fmt: skip
def test_a_misspelt_reference_says_what_was_meant(cache_folder: Path, reference: str, meant: str) -> None:
    assert cache_folder
    with pytest.raises((ModelNotFoundError, UsageError), match=rf"; did you mean {meant}\?$"):
        local.resolve(reference)


def test_a_name_that_is_near_to_none_proposes_none(cache_folder: Path) -> None:
    assert cache_folder
    with pytest.raises(ModelNotFoundError) as caught:
        local.resolve("nobody-code")
    assert "did you mean" not in str(caught.value)
