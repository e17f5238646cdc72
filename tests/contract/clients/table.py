"""The table of real Python clients: a function of a few lines each, the address of a server -> what it got from there.

A result is named by what it must equal: `query` is the vector of QUERY, `passages` those of DOCUMENTS, `ranking` the
order of DOCUMENTS for QUERY. Knows neither this project nor any client; the other modules import theirs when they run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUERY = "How do I open a socket?"
DOCUMENTS = ["ls lists files.", "A socket is opened with socket() and connect().", "海滩上美丽的日落"]
MODEL, PASSAGES = "starter", "starter/retrieval.passage"
KEY = "none"
Found = dict[str, Any]
Run = Callable[[str], Found]


@dataclass(frozen=True, slots=True)
class Client:
    """`api`: the server that it is made for, by its heading in docs/moving.md; `serve`: flags that the server needs."""

    api: str
    packages: tuple[str, ...]
    run: Run
    serve: tuple[str, ...] = ()


CLIENTS: dict[str, Client] = {}


def client(name: str, api: str, *packages: str, serve: tuple[str, ...] = ()) -> Callable[[Run], Run]:
    """Put a function into the table."""

    def add(run: Run) -> Run:
        CLIENTS[name] = Client(api, packages, run, serve)
        return run

    return add


def embedded(query: Callable[[str], Any], passages: Callable[[list[str]], Any]) -> Found:
    """What most clients are asked for."""
    return {"query": query(QUERY), "passages": passages(DOCUMENTS)}


def lancedb(name: str, *, query: dict[str, Any], passages: dict[str, Any], **common: Any) -> Found:
    """An embedding function of LanceDB's registry, made once for each role."""
    from lancedb.embeddings import get_registry

    make: Any = get_registry().get(name).create
    return embedded(
        lambda text: make(**common, **query).compute_query_embeddings(text)[0],
        lambda texts: make(**common, **passages).compute_source_embeddings(texts),
    )
