"""What the starter's card tells and no other benchmark measures.

    python -m benchmarks.starter_card                   (sizes, a sentence and translations, BM25 on the shipped sets)
    python -m benchmarks.starter_card battery VERDICT   (takes the file that the battery's `judge` wrote)

Writes `starter-card.json` and `starter-battery.json` into `benchmarks/results`. The battery's checkpoints are renamed:
`this`, and `first` and `second` for the earlier ones in the order in which they were judged.
"""

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import measuring
from nestling.evaluation import data, scoring
from nestling.models.embedder import Embedder
from nestling.models.local import STARTER, starter_checkpoint
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.spec import Task
from nestling.vectors import cosine

ENGLISH = "A beautiful sunset over the beach"
TRANSLATIONS = {
    "French": "Un beau coucher de soleil sur la plage",
    "Chinese": "海滩上美丽的日落",
    "Japanese": "浜辺に沈む美しい夕日",
    "German": "Ein schöner Sonnenuntergang am Strand",
    "Spanish": "Una hermosa puesta de sol en la playa",
}
PUBLISHED = ("French", "Chinese", "Japanese")
"""Those of the example that jina-embeddings-v4's authors published."""
UNRELATED = (
    "How to configure a Linux firewall with iptables",
    "The stock market fell sharply on Monday",
    "Der Zug nach Berlin hat zwanzig Minuten Verspätung",
)
EARLIER = ("first", "second")


def main() -> None:
    """Measure, or take the battery's verdict."""
    if sys.argv[1:2] == ["battery"]:
        verdict = json.loads(Path(sys.argv[2]).read_text("utf-8"))
        print(measuring.write("starter-battery", renamed(verdict)))
        return
    sunset = {task: _sunset(task) for task in Task}
    found = {"parameters": _parameters(), "sunset": sunset, "bm25": _bm25()}
    print(measuring.write("starter-card", found).read_text())


def _parameters() -> dict[str, int]:
    """How many the parts of the checkpoint have; an adapter's are those of one task."""
    checkpoint = Checkpoint.open(starter_checkpoint())
    of = {name: prod(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    adapter = checkpoint.adapters[Task.RETRIEVAL].values()
    return {
        "text": sum(count for name, count in of.items() if name.startswith("model.")),
        "tower": sum(count for name, count in of.items() if name.startswith("visual.")),
        "adapter": sum(prod(side.shape) for one in adapter for side in (one.a, one.b)),
    }


def _sunset(task: Task) -> dict[str, Any]:
    """Cosines of the sentence, all texts being queries, and the farthest translation's lead over the unrelated."""
    model = Embedder.load(f"{STARTER}-{task}:F16")
    vectors = model.encode_query([ENGLISH, *TRANSLATIONS.values(), *UNRELATED])
    model.close()
    found = cosine(vectors[:1], vectors[1:])[0].tolist()
    translated, unrelated = dict(zip(TRANSLATIONS, found, strict=False)), max(found[len(TRANSLATIONS) :])
    published = min(translated[language] for language in PUBLISHED)
    lead = {"gap": published - unrelated, "gap of all five": min(translated.values()) - unrelated}
    return {**translated, "nearest unrelated": unrelated, **lead}


def _bm25() -> dict[str, float]:
    """NDCG@10 of every shipped set of texts."""
    sets = [one for name in data.SHIPPED if isinstance(one := data.load(name), data.RetrievalSet)]
    return {one.name: scoring.lexical(one, None).full.means["nDCG@10"].mean for one in sets}


def renamed(verdict: dict[str, Any]) -> dict[str, Any]:
    """The battery's sets, with the checkpoints' places replaced by what they are."""
    names = {one["against"]: name for one, name in zip(verdict["summaries"], EARLIER, strict=True)}
    [this] = set(verdict["sets"][0]["figures"]) - {*names, "BM25"}
    names |= {this: "this", "BM25": "BM25"}
    sets = [
        one | {part: {names[key]: value for key, value in one[part].items()} for part in ("figures", "differences")}
        for one in verdict["sets"]
    ]
    return {"sets": sets, "summaries": [one | {"against": names[one["against"]]} for one in verdict["summaries"]]}


if __name__ == "__main__":
    main()
