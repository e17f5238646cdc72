"""Record how the numpy reference engine ranks the nano sets: python -m tests.golden.record_rankings

For each set, with the starter's F16 file of the set's first task: the top of every query's ranking and every nDCG@10.
Takes some minutes. `--check` compares the engine that `auto` chooses with the record, on all sets.
"""

import json
import sys
from pathlib import Path
from typing import Any

from nestling.evaluation import data, metrics
from nestling.evaluation.encoders import encode_all, open_encoder
from nestling.spec import Role
from nestling.vectors import cosine

RECORD = Path(__file__).with_name("rankings-starter.json")
DEPTH = 10
NEAR = 2e-5
"""Documents whose cosines to a query are nearer than this may change places: float32 sums in another order."""


def ranked(name: str, engine: str) -> dict[str, Any]:
    """The rankings, their scores and nDCG@10 of a shipped set."""
    benchmark = data.load(name)
    assert isinstance(benchmark, data.RetrievalSet)
    encoder = open_encoder(f"starter-{benchmark.tasks[0]}:F16", engine=engine)
    queries = encode_all(encoder, benchmark.queries, role=Role.QUERY)
    documents = encode_all(encoder, benchmark.documents, role=Role.PASSAGE)
    encoder.close()
    order = metrics.search(queries, documents, benchmark.document_ids)
    place = {identifier: number for number, identifier in enumerate(benchmark.document_ids)}
    cosines = cosine(queries, documents)
    scores = [
        [round(float(row[place[one]]), 7) for one in ids[:DEPTH]] for row, ids in zip(cosines, order, strict=True)
    ]
    by_query = dict(zip(benchmark.query_ids, order, strict=True))
    return {
        "rankings": [ids[:DEPTH] for ids in order],
        "cosines": scores,
        "nDCG@10": metrics.per_query(benchmark.relevant, by_query)["nDCG@10"],
    }


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Where a ranking or a score differs by more than documents that are as good as level changing places."""
    wrong = []
    for query, (ours, theirs, cosines) in enumerate(
        zip(found["rankings"], wanted["rankings"], wanted["cosines"], strict=True)
    ):
        score = dict(zip(theirs, cosines, strict=True))
        for one, other in zip(ours, theirs, strict=True):
            if one != other and abs(score.get(one, cosines[-1]) - score[other]) > NEAR:
                wrong.append(f"query {query}: {one} in the place of {other}")
    gap = max(abs(a - b) for a, b in zip(found["nDCG@10"], wanted["nDCG@10"], strict=True))
    return wrong + ([f"nDCG@10 of a query differs by {gap}"] if gap else [])


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        record = json.loads(RECORD.read_text("utf-8"))
        for name in data.SHIPPED:
            print(name, differences(ranked(name, "auto"), record[name]) or "as recorded")
    else:
        record = {name: ranked(name, "reference") for name in data.SHIPPED}
        RECORD.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", "utf-8")
