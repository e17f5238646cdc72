"""Our multi-vectors against those that transformers and torch gave for the starter (see record_vectors.py).

0.9999 a token for float files is the product's promise. Q8_0 rounds weights and, where the processor multiplies int8,
activations to 8 bits: 0.999, as for whole texts.
"""

from pathlib import Path

import numpy as np
import pytest
from tests.golden.test_recorded_vectors import HERE, ROLES
from tests.golden.texts import SHORT_TEXTS

from nestling.models.embedder import Embedder
from nestling.models.local import starter_checkpoint
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import paired_cosine

FLOAT, INT8 = 0.9999, 0.999


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built-tokens")
    Pipeline(Checkpoint.open(starter_checkpoint()), folder, "starter", 2).build(list(Task), ["F32", "F16", "Q8_0"])
    return folder


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("engine", ["openvino", "llamacpp", "reference"])
@pytest.mark.parametrize(("file_type", "needed"), [("F32", FLOAT), ("F16", FLOAT), ("Q8_0", INT8)])
def test_every_token_has_the_originals_vector(
    built: Path, *, file_type: str, needed: float, engine: str, task: Task
) -> None:
    model = Embedder.load(model_path(built, family="starter", task=task, file_type=file_type), engine=engine)
    with np.load(HERE / "tokens-starter.npz") as want:
        for role in ROLES:
            found = model.encode_tokens(SHORT_TEXTS, prompt_name=role)
            assert [len(one) for one in found] == [len(ids) for ids in model.tokenize(SHORT_TEXTS, prompt_name=role)]
            rows = np.concatenate(found)
            assert rows.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
            cosines = paired_cosine(rows, want[f"{task}/{role}"])
            assert cosines.min() >= needed, f"{role}: token {cosines.argmin()} has cosine {cosines.min():.6f}"
    model.close()
