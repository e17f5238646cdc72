"""nestling's models as models of `mteb`, so that MTEB runs on them with the right prompts. The only import of mteb.

    import mteb
    from nestling.evaluation.mteb_model import NestlingModel
    mteb.evaluate(NestlingModel(Embedder.load("jina-v4-retrieval:Q8_0")), mteb.get_tasks(tasks=["SciFact"]))

Needs the extra `mteb`, which installs torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from nestling.models.embedder import Embedder
from nestling.spec import Role
from nestling.vectors import Floats


class NestlingModel(AbsEncoder):  # type: ignore[misc]  # mteb is not installed where types are checked
    """An embedder with mteb's encoder protocol.

    Queries get the query prompt, documents the passage prompt. Tasks with one kind of text (pairs, clustering,
    classification), for which mteb names no role, get the query prompt. Longer texts than the model takes are
    truncated, as in all published MTEB results; mteb compares vectors by cosine.
    """

    def __init__(self, embedder: Embedder, *, truncate_dim: int | None = None) -> None:
        self._embedder, self._size = embedder, embedder.spec.dimension(truncate_dim)
        spec = embedder.spec
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"nestling/{spec.name}",
                "revision": spec.source,
                "max_tokens": spec.max_tokens,
                "embed_dim": self._size,
                "open_weights": True,
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        prompt_type: Any = None,  # noqa: ANN401 - mteb's PromptType
        **_protocol: Any,  # noqa: ANN401 - the protocol's task_metadata, hf_split, hf_subset and batch_size
    ) -> Floats:
        """Embed batches of texts: -> (N, dim) float32, unit rows in their order."""
        role = Role.PASSAGE if getattr(prompt_type, "value", prompt_type) == "document" else Role.QUERY
        parts = [
            self._embedder.encode(batch["text"], prompt_name=role, truncate_dim=self._size, truncate=True)
            for batch in inputs
        ]
        return np.concatenate(parts) if parts else np.empty((0, self._size), np.float32)
