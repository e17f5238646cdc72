"""Step 4: tokenize rows and pairs once.

Reads  WORK/rows.jsonl, WORK/pairs.jsonl and a tokenizer.json.
Writes WORK/rows.npz (tokens, anchor numbers, groups) and WORK/pairs-KIND.npz (tokens of both sides).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from starter_recipe.records import PairKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PADDING = "<|endoftext|>"
PREFIXES = {"query": "Query:", "passage": "Passage:"}
ROW_TOKENS = 180
QUERY_TOKENS = 60
PASSAGE_TOKENS = 180
_CHUNK = 50_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token sequences end to end; text i is flat[offsets[i]:offsets[i + 1]]."""

    flat: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Token count of each text."""
        return np.diff(self.offsets)

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        """Return one text's tokens."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, longest: int) -> Tokens:
    """Tokenize texts as they stand after a prefix, that is with a leading space."""
    parts: list[NDArray[np.uint16]] = []
    for start in range(0, len(texts), _CHUNK):
        encodings = tokenizer.encode_batch([f" {text.strip()}" for text in texts[start : start + _CHUNK]])
        parts += [np.array(encoding.ids[:longest], np.uint16) for encoding in encodings]
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in parts])))
    return Tokens(np.concatenate(parts), offsets)


class Collator:
    """Puts a prefix before each text and pads on the right."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._prefixes = {role: tokenizer.encode(prefix).ids for role, prefix in PREFIXES.items()}
        self._padding = tokenizer.token_to_id(PADDING)

    def __call__(
        self, texts: Sequence[NDArray[np.uint16]], roles: Sequence[str], longest: int = 4096
    ) -> tuple[Tensor, Tensor]:
        """Return (ids (B, T) int64, mask (B, T) float32)."""
        rows = [[*self._prefixes[role], *text[:longest].tolist()] for text, role in zip(texts, roles, strict=True)]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self._padding] * (width - len(row)) for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        return ids, (torch.arange(width)[None] < lengths).float()


def write_rows(work: Path, tokenizer: Tokenizer) -> None:
    """Tokenize WORK/rows.jsonl; a group is a source's family together with a language.

    `english` is the row that holds the English original itself, or -1: every English row is its own anchor.
    """
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text("utf-8").splitlines()]
    tokens = tokenize(tokenizer, [text for text, *_ in rows], longest=ROW_TOKENS)
    names = [f"{source.split('/')[0]} {language}" for _, _, source, language in rows]
    groups, numbers = np.unique(names, return_inverse=True)
    anchors = np.array([anchor for _, anchor, *_ in rows], np.int64)
    originals = {anchor: index for index, (_, anchor, _, language) in enumerate(rows) if language == "en"}
    np.savez(
        work / "rows.npz",
        flat=tokens.flat,
        offsets=tokens.offsets,
        anchors=anchors,
        english=np.array([originals.get(anchor, -1) for anchor in anchors.tolist()], np.int64),
        group=numbers,
        groups=groups,
    )
    print(f"rows: {len(rows)} texts, {len(tokens.flat)} tokens, {len(groups)} groups", flush=True)


def write_pairs(work: Path, tokenizer: Tokenizer) -> None:
    """Tokenize WORK/pairs.jsonl, one archive per kind."""
    pairs = [json.loads(line) for line in (work / "pairs.jsonl").read_text("utf-8").splitlines()]
    for kind in PairKind:
        chosen = [pair for pair in pairs if pair[2] == kind]
        queries = tokenize(tokenizer, [pair[0] for pair in chosen], longest=QUERY_TOKENS)
        passages = tokenize(tokenizer, [pair[1] for pair in chosen], longest=PASSAGE_TOKENS)
        sources, group = np.unique([pair[3] for pair in chosen], return_inverse=True)
        np.savez(
            work / f"pairs-{kind}.npz",
            query_flat=queries.flat,
            query_offsets=queries.offsets,
            passage_flat=passages.flat,
            passage_offsets=passages.offsets,
            query_anchor=np.array([query for *_, query, _ in chosen], np.int64),
            passage_anchor=np.array([passage for *_, passage in chosen], np.int64),
            group=group,
            groups=sources,
        )
        print(f"{kind}: {len(chosen)} pairs, {len(queries.flat) + len(passages.flat)} tokens", flush=True)


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the checkpoint")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    write_rows(options.work, tokenizer)
    write_pairs(options.work, tokenizer)


if __name__ == "__main__":
    main()
