"""Which dialect a request is in: by its path, and where several dialects have the path, by its body.

A body's top-level fields decide: a route is meant by a body that has a field which it claims; a route that claims none
is meant by the others. Where that leaves two, the operator's `--dialect` comes first, then the registry's order.
"""

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import from_json

from nestling.server.api.dialect import Dialect, Route


@dataclass(frozen=True, slots=True)
class Spoken:
    """A route as one dialect has it."""

    dialect: Dialect
    route: Route


def speakers(dialects: Sequence[Dialect], preferred: str | None = None) -> dict[tuple[str, str], list[Spoken]]:
    """What each (path, method) may mean, `preferred`'s meaning first; below a dialect's prefix, its own alone."""
    found: dict[tuple[str, str], list[Spoken]] = {}
    for dialect in sorted(dialects, key=lambda one: one.name != preferred):
        for route in dialect.routes:
            for path in (route.path, *route.also):
                found.setdefault((path, route.method), []).append(Spoken(dialect, route))
                found.setdefault((f"/{dialect.name}{path}", route.method), []).append(Spoken(dialect, route))
    return found


def spoken_for(spoken: Sequence[Spoken], body: bytes) -> Spoken:
    """The meaning of a body. One that is no JSON object has the first's, whose reader says what is wrong with it."""
    if len(spoken) == 1:
        return spoken[0]
    try:
        read = from_json(body.removeprefix(BOM_UTF8), cache_strings="keys")
    except ValueError:
        return spoken[0]
    fields = read.keys() if isinstance(read, dict) else set()
    claimed = [one for one in spoken if one.route.claims & fields]
    return next(iter([*claimed, *(one for one in spoken if not one.route.claims), *spoken]))
