"""What a client has to get: the vectors and the order that Python gives for the same texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.contract.clients.table import DOCUMENTS, QUERY

from nestling import Embedder
from nestling.vectors import Floats

SAME = 1e-6
"""Float32 rounding: JSON carries the digits of a float32, some clients read them as float64."""


@dataclass(frozen=True, slots=True)
class Expected:
    """By the names that `table` gives them."""

    embedder: Embedder

    @classmethod
    def load(cls) -> "Expected":
        """Of the model that `nestling serve` has by default."""
        return cls(Embedder.load("starter-retrieval:Q8_0"))

    def largest_difference(self, found: Mapping[str, Any]) -> float:
        """Of any component; ValueError for another shape or order, or for nothing at all."""
        if not found:
            raise ValueError("no vector and no order")
        if (order := found.get("ranking", self.ranking())) != self.ranking():
            raise ValueError(f"ranked {order}, expected {self.ranking()}")
        vectors = {name: np.array(value, np.float64) for name, value in found.items() if name != "ranking"}
        return max((_difference(rows, self.vectors(name, rows.shape[-1])) for name, rows in vectors.items()), default=0)

    def vectors(self, name: str, size: int) -> Floats:
        """`query`, `passage` (the second document alone) -> (size,), `passages` -> (documents, size)."""
        if name == "passages":
            return self.embedder.encode_document(DOCUMENTS, truncate_dim=size)
        texts, role = {"query": ([QUERY], "query"), "passage": (DOCUMENTS[1:2], "passage")}[name]
        row: Floats = self.embedder.encode(texts, prompt_name=role, truncate_dim=size)[0]
        return row

    def ranking(self) -> list[int]:
        """The documents' places, nearest to the query first."""
        scores = self.embedder.encode_document(DOCUMENTS) @ self.embedder.encode_query([QUERY])[0]
        return [int(place) for place in np.argsort(-scores)]


def _difference(found: Any, expected: Floats) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"vectors of shape {found.shape}, expected {expected.shape}")
    return float(np.abs(found - expected).max())
