"""Our vectors against those that transformers and torch gave for the same checkpoints (see record_vectors.py).

Tolerances: 0.9999 for float files is the product's promise; float32 sums in another order differ by about 1e-6. 0.999
for Q8_0 files is the promise for int8: weights carry 8 bits, activations too where the processor multiplies int8.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.golden.texts import LONG_TEXTS, TEXTS
from tests.tiny import write_tiny_checkpoint

from nestling.models.embedder import Embedder
from nestling.models.local import starter_checkpoint
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Role, Task
from nestling.vectors import paired_cosine

HERE = Path(__file__).parent
FLOAT, INT8 = 0.9999, 0.999
ROLES = (Role.QUERY, Role.PASSAGE)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the tiny and the starter checkpoint that the tests below compare."""
    folder = tmp_path_factory.mktemp("built")
    write_tiny_checkpoint(folder / "tiny-checkpoint")
    Pipeline(Checkpoint.open(folder / "tiny-checkpoint"), folder, "tiny", 2).build(list(Task), ["F32", "F16", "Q8_0"])
    Pipeline(Checkpoint.open(starter_checkpoint()), folder, "starter", 2).build(list(Task), ["F32", "F16", "Q8_0"])
    return folder


def recorded(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(HERE / name) as arrays:
        return dict(arrays)


def embed(model: Embedder, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
    """All texts, the blank one too, which `encode` refuses and the original does not."""
    return model.embed_ids(model.tokenizer.encode([model.spec.prefix(role) + text for text in texts]))


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("engine", ["openvino", "llamacpp"])
@pytest.mark.parametrize(
    ("family", "file_type", "needed"),
    [("tiny", "F32", FLOAT), ("tiny", "F16", FLOAT), ("starter", "F16", FLOAT), ("starter", "Q8_0", INT8)],
)
def test_every_text_has_the_originals_vector(
    built: Path, *, family: str, file_type: str, needed: float, engine: str, task: Task
) -> None:
    model = Embedder.load(model_path(built, family=family, task=task, file_type=file_type), engine=engine)
    want = recorded(f"vectors-{family}.npz")
    for role in ROLES:
        cosines = paired_cosine(embed(model, TEXTS, role), want[f"{task}/{role}"])
        assert cosines.min() >= needed, f"{role}: text {cosines.argmin()} has cosine {cosines.min():.6f}"
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "llamacpp"])
@pytest.mark.parametrize(("file_type", "needed"), [("F32", FLOAT), ("Q8_0", INT8)])
def test_texts_of_two_thousand_tokens(built: Path, *, engine: str, file_type: str, needed: float) -> None:
    """Longer than any micro-batch that the engines start with, beside a short text in the same call."""
    path = model_path(built, family="starter", task=Task.RETRIEVAL, file_type=file_type)
    model = Embedder.load(path, engine=engine)
    got = embed(model, [TEXTS[0], *LONG_TEXTS], Role.PASSAGE)[1:]
    cosines = paired_cosine(got, recorded("vectors-starter-long.npz")["retrieval/passage"])
    assert cosines.min() >= needed, cosines
    model.close()


@pytest.mark.parametrize("family", ["tiny", "starter"])
def test_reference_engine(built: Path, *, family: str) -> None:
    """The oracle of the other tests has the recorded vectors too: 1e-5 is float32 noise over a few layers."""
    model = Embedder.load(model_path(built, family=family, task=Task.CODE, file_type="F32"), engine="reference")
    got = embed(model, TEXTS, Role.QUERY)
    np.testing.assert_allclose(paired_cosine(got, recorded(f"vectors-{family}.npz")["code/query"]), 1, atol=1e-5)


@pytest.mark.parametrize("role", ROLES)
def test_token_ids_are_those_of_the_original_tokenizer(built: Path, *, role: Role) -> None:
    model = Embedder.load(model_path(built, family="starter", task=Task.RETRIEVAL, file_type="F16"), engine="reference")
    prefix, want = model.spec.prefix(role), recorded("vectors-starter.npz")
    for index, ids in enumerate(model.tokenizer.encode([prefix + text for text in TEXTS])):
        assert len(ids) == want[f"count/{prefix.strip()}"][index]
        assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == want[f"sha256/{prefix.strip()}"][index]
