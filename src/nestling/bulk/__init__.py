"""Corpus jobs: embed the rows of files into files of vectors, shard by shard; an interrupted job resumes.

    from nestling import bulk
    outcome = bulk.run(["corpus/*.parquet"], Path("vectors"), bulk.JobSpec("starter-retrieval", dimensions=128))
    hits = bulk.search(Path("vectors"), "How do I open a socket?", top=10)

Needs the extra `bulk` (pyarrow, fsspec); running on Ray the extra `ray`, a LanceDB table the extra `lance`. The names
here are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from nestling._util.extras import need

if TYPE_CHECKING:
    from nestling.bulk.exact_search import search
    from nestling.bulk.job import run
    from nestling.bulk.settings import JobSpec, Outcome, Runner, RunOptions, Sink, Status, VectorType

__all__ = ["JobSpec", "Outcome", "RunOptions", "Runner", "Sink", "Status", "VectorType", "run", "search"]

_HOMES = {"run": "job", "search": "exact_search"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute
    if name not in __all__:
        raise AttributeError(f"module 'nestling.bulk' has no attribute {name!r}")
    need("pyarrow", wanted_for="bulk embedding", extra="bulk")
    home = need(f"nestling.bulk.{_HOMES.get(name, 'settings')}", wanted_for="bulk embedding", extra="bulk")
    return getattr(home, name)
