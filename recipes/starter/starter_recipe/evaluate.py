"""Step 10: judge checkpoints: nDCG@10 on the three benchmark sets, and the published sunset example.

Reads checkpoints in the jina-embeddings-v4 layout and the sets (BEIR layout). With two checkpoints the last column is
the second minus the first, paired by query, with its standard error. `--maxsim` adds the multi-vector head.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from starter_recipe.checkpoint import load_model
from starter_recipe.exclude import read_jsonl
from starter_recipe.model import MATRYOSHKA_DIMS, TASKS, Embedder, pool
from starter_recipe.records import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

CUTOFF = 10
LONGEST = 512
BATCH = 32
QUERY, PASSAGE = "Query: ", "Passage: "
ENGLISH = "A beautiful sunset over the beach"
TRANSLATIONS = ("Un beau coucher de soleil sur la plage", "海滩上美丽的日落", "浜辺に沈む美しい夕日")
UNRELATED = (
    "How to configure a Linux firewall with iptables",
    "The stock market fell sharply on Monday",
    "Der Zug nach Berlin hat zwanzig Minuten Verspätung",
)
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trial:
    """A benchmark set read with one task; text-matching puts the query prefix on both sides."""

    name: str
    task: str

    @property
    def document_prefix(self) -> str:
        """Prefix of the documents."""
        return QUERY if self.task == "text-matching" else PASSAGE


TRIALS = (
    Trial("perlfaq-en", "retrieval"),
    Trial("code-docstring", "code"),
    Trial("xling-manpages", "retrieval"),
    Trial("xling-manpages", "text-matching"),
)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Documents, the queries that have an answer, and the answers' document numbers."""

    documents: list[str]
    queries: list[str]
    languages: list[str]
    relevant: list[set[int]]

    @classmethod
    def load(cls, folder: Path) -> Benchmark:
        """Read a set in BEIR layout."""
        corpus = read_jsonl(folder / "corpus.jsonl")
        number = {row["_id"]: index for index, row in enumerate(corpus)}
        relevant: dict[str, set[int]] = {}
        with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                if int(row["score"]) > 0:
                    relevant.setdefault(row["query-id"], set()).add(number[row["corpus-id"]])
        queries = [row for row in read_jsonl(folder / "queries.jsonl") if row["_id"] in relevant]
        return cls(
            [f"{row.get('title', '')} {row['text']}".strip() for row in corpus],
            [row["text"] for row in queries],
            [row.get("metadata", {}).get("lang", "en") for row in queries],
            [relevant[row["_id"]] for row in queries],
        )


class Encoder:
    """Embeds prefixed texts with one checkpoint and task."""

    def __init__(self, folder: Path, task: str) -> None:
        self.model: Embedder = load_model(folder, task)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> Array:
        """Return mean-pooled vectors, (N, 256), not normalised."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = np.argsort([len(row) for row in ids], kind="stable")
        found = np.zeros((len(ids), self.model.shape.hidden), np.float32)
        for start in range(0, len(order), BATCH):
            members = order[start : start + BATCH]
            width = len(ids[members[-1]])
            batch = torch.tensor([ids[index] + [0] * (width - len(ids[index])) for index in members])
            mask = torch.arange(width)[None] < torch.tensor([[len(ids[index])] for index in members])
            found[members] = pool(self.model.hidden(batch), mask.float()).numpy()
        return found

    @torch.inference_mode()
    def token_vectors(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Return each text's projected unit token vectors, (T, 64)."""
        found = []
        for encoding in self.tokenizer.encode_batch(list(texts)):
            states = self.model.hidden(torch.tensor([encoding.ids]))[0]
            found.append(torch.nn.functional.normalize(self.model.multi_vector_projector(states), dim=-1))
        return found


def unit(vectors: Array, dims: int = MATRYOSHKA_DIMS[-1]) -> Array:
    """Truncate rows to `dims` dimensions and scale them to unit length."""
    cut = vectors[:, :dims]
    rows: Array = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    return rows


def ndcg(scores: Array, relevant: list[set[int]]) -> NDArray[np.float64]:
    """nDCG@10 of each query, binary relevance: (Q, D) -> (Q,)."""
    gains = 1 / np.log2(np.arange(CUTOFF) + 2)
    values = []
    for row, wanted in zip(scores, relevant, strict=True):
        top = np.argsort(-row, kind="stable")[:CUTOFF]
        hits = np.array([document in wanted for document in top.tolist()])
        values.append((gains * hits).sum() / gains[: len(wanted)].sum())
    return np.array(values)


def run_trial(folder: Path, trial: Trial, benchmark: Benchmark, *, maxsim: bool) -> dict[str, NDArray[np.float64]]:
    """Return nDCG of each query at every dimension, and by MaxSim if asked."""
    encoder = Encoder(folder, trial.task)
    queries = [QUERY + text for text in benchmark.queries]
    documents = [trial.document_prefix + text for text in benchmark.documents]
    left, right = encoder.vectors(queries), encoder.vectors(documents)
    results = {str(dims): ndcg(unit(left, dims) @ unit(right, dims).T, benchmark.relevant) for dims in MATRYOSHKA_DIMS}
    if maxsim:
        passages = encoder.token_vectors(documents)
        starts = np.cumsum([0, *(len(tokens) for tokens in passages[:-1])])
        every = torch.cat(passages).numpy().T
        best = [
            np.maximum.reduceat(tokens.numpy() @ every, starts, axis=1) for tokens in encoder.token_vectors(queries)
        ]
        results["maxsim"] = ndcg(np.stack([row.mean(0) for row in best]), benchmark.relevant)
    return results


def sunset(folder: Path, task: str) -> tuple[list[float], float]:
    """Return the cosines of the English sentence with its translations, and with the nearest unrelated sentence."""
    texts = [QUERY + text for text in (ENGLISH, *TRANSLATIONS, *UNRELATED)]
    vectors = unit(Encoder(folder, task).vectors(texts))
    cosines = vectors[1:] @ vectors[0]
    translated = len(TRANSLATIONS)
    return cosines[:translated].tolist(), float(cosines[translated:].max())


def mean_and_error(values: NDArray[np.float64]) -> str:
    """Format a mean with its standard error."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def report_trials(folders: list[Path], benchmarks: Path, *, maxsim: bool) -> dict[str, Any]:
    """Print the table of the sets and return per-query figures."""
    record: dict[str, Any] = {}
    for trial in TRIALS:
        benchmark = Benchmark.load(benchmarks / trial.name)
        runs = [run_trial(folder, trial, benchmark, maxsim=maxsim) for folder in folders]
        for key in runs[0]:
            cells = [mean_and_error(run[key]) for run in runs]
            if len(runs) > 1:
                cells.append("difference " + mean_and_error(runs[-1][key] - runs[0][key]))
            print(f"{trial.name} ({trial.task}) {key}: " + " | ".join(cells), flush=True)
        for language in sorted(set(benchmark.languages)):
            chosen = np.array([found == language for found in benchmark.languages])
            cells = [f"{run['256'][chosen].mean():.3f}" for run in runs]
            print(f"    {language} ({chosen.sum()} queries): " + " | ".join(cells))
        record[f"{trial.name} {trial.task}"] = [{key: run[key].tolist() for key in run} for run in runs]
    return record


def report_held_out(folders: list[Path], path: Path) -> dict[str, Any]:
    """Print how often a held-out translation's own English message is the nearest of all of them."""
    groups = read_jsonl(path)
    record: dict[str, Any] = {}
    for folder in folders:
        encoder = Encoder(folder, "text-matching")
        english = unit(encoder.vectors([QUERY + group["en"] for group in groups]))
        for language in LANGUAGES:
            found = unit(encoder.vectors([QUERY + group[language] for group in groups])) @ english.T
            hits = (found.argmax(1) == np.arange(len(groups))).astype(np.float64)
            print(f"held out {language} -> en {folder.name}: {mean_and_error(hits)}", flush=True)
            record.setdefault(language, []).append(float(hits.mean()))
    return record


def report_sunset(folders: list[Path]) -> dict[str, Any]:
    """Print the example with every task: each translation must be nearer than the nearest unrelated sentence."""
    record: dict[str, Any] = {}
    for task in TASKS:
        for folder in folders:
            translations, unrelated = sunset(folder, task)
            verdict = "good" if min(translations) > unrelated else "BAD"
            values = ", ".join(
                f"{name} {value:.3f}" for name, value in zip(("fr", "zh", "ja"), translations, strict=True)
            )
            print(f"sunset {task} {folder.name}: {values}; unrelated at most {unrelated:.3f}: {verdict}")
            record.setdefault(task, []).append({"translations": translations, "unrelated": unrelated})
    return record


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of the three sets")
    parser.add_argument("--maxsim", action="store_true", help="also score the multi-vector head")
    parser.add_argument("--held-out", type=Path, help="also score WORK/held-out.jsonl")
    parser.add_argument("--output", type=Path, help="write the per-query figures here (JSON)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = report_trials(options.checkpoints, options.benchmarks, maxsim=options.maxsim)
    record["sunset"] = report_sunset(options.checkpoints)
    if options.held_out is not None:
        record["held out"] = report_held_out(options.checkpoints, options.held_out)
    if options.output is not None:
        options.output.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
