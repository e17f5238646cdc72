"""Step 4 of the eyes: judge a tower on `pages-en` and `emoji-names`, which are never trained on.

Reads  WORK/eyes.safetensors, the checkpoint that it was trained for, and the folder of the two sets.
Writes nothing: it prints nDCG@10 of the pages (as images, and their OCR text by the text tower) and recall@10 of the
       emoji in each language. `nestling eval quality` on an exported checkpoint says the same, and BM25's beside it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from starter_recipe.evaluate import CUTOFF, mean_and_error, ndcg
from starter_recipe.exclude import read_jsonl
from starter_recipe.eyes.export import load_tower
from starter_recipe.eyes.losses import PREFIXES
from starter_recipe.eyes.seeing import Eyes, Reader
from starter_recipe.eyes.tower import CELL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BATCH_TOKENS = 2048
TASK = "retrieval"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images, queries, and the number of each query's image."""

    folder: Path
    corpus: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    relevant: list[set[int]]

    @classmethod
    def load(cls, folder: Path) -> ImageSet:
        """Read a set in BEIR layout whose queries have one image each."""
        corpus, queries = read_jsonl(folder / "corpus.jsonl"), read_jsonl(folder / "queries.jsonl")
        number = {row["_id"]: place for place, row in enumerate(corpus)}
        lines = (folder / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]
        image = {query: number[document] for query, document, _ in (line.split("\t") for line in lines)}
        return cls(folder, corpus, queries, [{image[query["_id"]]} for query in queries])

    def images(self) -> list[Image.Image]:
        """The images, resized as the model's processor does: both sides to multiples of 28."""
        found = [Image.open(self.folder / row["image"]).convert("RGB") for row in self.corpus]
        sizes = [tuple(max(2, round(side / CELL)) * CELL for side in one.size) for one in found]
        return [one.resize(size, Image.Resampling.BICUBIC) for one, size in zip(found, sizes, strict=True)]


def image_vectors(eyes: Eyes, images: Sequence[Image.Image]) -> torch.Tensor:
    """Unit vectors of images, those of one size together: (N, D)."""
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, one in enumerate(images):
        sizes[one.size].append(place)
    found: dict[int, torch.Tensor] = {}
    for (width, height), places in sizes.items():
        step = max(1, BATCH_TOKENS * CELL**2 // (width * height))
        for start in range(0, len(places), step):
            members = places[start : start + step]
            pixels = torch.from_numpy(np.stack([np.asarray(images[one]) for one in members]))
            with torch.inference_mode():
                found |= dict(zip(members, eyes.vectors(pixels, TASK), strict=True))
    return torch.stack([found[place] for place in range(len(images))])


def query_vectors(eyes: Eyes, benchmark: ImageSet) -> torch.Tensor:
    """Unit vectors of a set's queries: (Q, D)."""
    return eyes.readers[TASK].texts([PREFIXES["name"] + row["text"] for row in benchmark.queries])


def report_emoji(eyes: Eyes, benchmark: ImageSet) -> None:
    """Print recall@10 by language, and the mean of those other than English."""
    scores = (query_vectors(eyes, benchmark) @ image_vectors(eyes, benchmark.images()).T).numpy()
    top = np.argsort(-scores, axis=1, kind="stable")[:, :CUTOFF]
    hits: dict[str, list[float]] = defaultdict(list)
    for row, wanted, query in zip(top, benchmark.relevant, benchmark.queries, strict=True):
        hits[query["metadata"]["lang"]].append(float(bool(wanted & set(row.tolist()))))
    values = {language: np.array(one) for language, one in hits.items()}
    print("emoji-names recall@10:", ", ".join(f"{one} {mean_and_error(value)}" for one, value in values.items()))
    others = np.mean([value.mean() for one, value in values.items() if one != "en"])
    print(
        f"    English {values['en'].mean():.3f}, mean of the others {others:.3f}; chance {CUTOFF / scores.shape[1]:.3f}"
    )


def report_pages(eyes: Eyes, benchmark: ImageSet) -> None:
    """Print nDCG@10 of the images, of their OCR text, and of the pages in fonts that were or were not trained on."""
    queries = query_vectors(eyes, benchmark)
    read = eyes.readers[TASK].texts([PREFIXES["text"] + row["ocr"] for row in benchmark.corpus])
    seen = image_vectors(eyes, benchmark.images())
    unseen = np.array([row["metadata"]["unseen"] for row in benchmark.corpus])[[min(one) for one in benchmark.relevant]]
    for name, documents in (("images", seen), ("OCR text, text tower", read)):
        values: NDArray[np.float64] = ndcg((queries @ documents.T).numpy(), benchmark.relevant)
        parts = f"fonts known {values[~unseen].mean():.3f}, unseen {values[unseen].mean():.3f}"
        print(f"pages-en nDCG@10, {name}: {mean_and_error(values)} ({parts})")


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work-eyes"))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--sets", type=Path, required=True, help="folder of pages-en and emoji-names")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    eyes = Eyes(load_tower(options.work / "eyes.safetensors"), {TASK: Reader(options.checkpoint, TASK)})
    report_emoji(eyes, ImageSet.load(options.sets / "emoji-names"))
    report_pages(eyes, ImageSet.load(options.sets / "pages-en"))


if __name__ == "__main__":
    main()
