"""docs/models.md: a model is named in the same ways for every command.

Doors: every verb that takes a model (`embed`, `similarity`, `rerank`, `inspect`, `show`, `verify`, `imatrix`,
`quantize`, `bulk`, `search`, `eval speed`), by a name of the cache; a checkpoint (`build`, `convert`, `multivector`)
by `starter`. `serve` is in the server's tests.
"""

from pathlib import Path

import pytest
from tests import tiny_gguf
from tests.command_line import nestling

from nestling.models.local import family_folder
from nestling.pipeline.pipeline import model_path
from nestling.spec import Task


@pytest.fixture(scope="module")
def inputs(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of one tiny model in the cache, and files for the verbs."""
    assert cache_folder.is_dir()
    path = model_path(family_folder("named"), family="named", task=Task.CODE, file_type="F32")
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny_gguf.write(path, task=Task.CODE)
    folder = tmp_path_factory.mktemp("named")
    words = [f"Paragraph {number}: the folder is locked while it is built." for number in range(60)]
    (folder / "words.txt").write_text("\n\n".join(words))
    (folder / "rows.jsonl").write_text('{"id": 1, "text": "a"}\n')
    return folder


MODEL = "named-code:F32"
VERBS = {
    "embed": ["embed", "a", "--model", MODEL, "--engine", "reference"],
    "similarity": ["similarity", "a", "b", "--model", MODEL, "--engine", "reference"],
    "rerank": ["rerank", "a", "b", "--model", MODEL, "--engine", "reference", "--scoring", "cosine"],
    "inspect": ["inspect", MODEL],
    "show": ["show", MODEL],
    "verify": ["verify", MODEL],
    "verify --against": ["verify", MODEL, "--against", MODEL],
    "imatrix": ["imatrix", MODEL, "--calibration", "words.txt", "--threads", "1", "--out", "m.gguf"],
    "quantize": ["quantize", MODEL, "Q8_0", "--threads", "1", "--out", "q.gguf"],
    "quantize --dry-run": ["quantize", MODEL, "Q8_0", "--dry-run"],
    "bulk": ["bulk", "rows.jsonl", "--model", MODEL, "--backend", "reference", "--out", "v"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_is_taken_by_every_verb(verb: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    done = nestling(*VERBS[verb])
    assert done.code == 0, done.err


@pytest.mark.parametrize("verb", ["quantize", "imatrix", "inspect", "show", "verify", "embed"])
def test_a_name_that_is_not_here_gets_one_advice_from_every_verb(
    verb: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    done = nestling(*(word.replace("F32", "F16") for word in VERBS[verb]))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("nestling: named-code:F16: not on this machine; available: named-code:F32")


def test_the_starters_checkpoint_is_converted_by_its_name(tmp_path: Path) -> None:
    done = nestling("convert", "starter", "--task", "code", "--out", tmp_path / "x.gguf")
    assert (done.code, (tmp_path / "x.gguf").exists()) == (0, True), done.err
