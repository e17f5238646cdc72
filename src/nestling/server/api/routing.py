"""Which dialect a request is in: by its path, and where several dialects have the path, by its body.

A body's top-level fields decide: a route is meant by a body that has a field which it claims; a route that claims none
is meant by the others. Where that leaves doubt, the operator's `--dialect` decides, then the registry's order.
"""

from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic_core import from_json

from nestling.server.api.dialect import Dialect, Route


@dataclass(frozen=True, slots=True)
class Spoken:
    """A route as one dialect has it; `preferred` where the operator prefers that dialect."""

    dialect: Dialect
    route: Route
    preferred: bool = False

    def is_meant(self, fields: frozenset[str]) -> bool:
        """True for a body whose fields make it this route's without doubt."""
        return bool(self.route.claims & fields) or (self.preferred and bool(self.route.preferred_by & fields))


Spellings = dict[tuple[str, str], list[Spoken]]
"""What each (path, method) may mean."""


def speakers(dialects: Sequence[Dialect], preferred: str | None = None) -> Spellings:
    """What each (path, method) may mean, `preferred`'s meaning first; below a dialect's prefix, its own alone.

    A path that a dialect has not means below its prefix what it means without one.
    """
    common: Spellings = {}
    own: Spellings = {}
    for dialect in sorted(dialects, key=lambda one: one.name != preferred):
        for route in dialect.routes:
            for path in (route.path, *route.also):
                spoken = Spoken(dialect, route, preferred=dialect.name == preferred)
                common.setdefault((path, route.method), []).append(spoken)
                own.setdefault((f"/{dialect.name}{path}", route.method), []).append(spoken)
    borrowed = {place: spoken for dialect in dialects for place, spoken in _below(dialect, common).items()}
    below = borrowed | own
    return common | {place: spoken for place, spoken in below.items() if place not in common}


def _below(dialect: Dialect, common: Mapping[tuple[str, str], Sequence[Spoken]]) -> Spellings:
    """The paths of all dialects below the prefix of one, which writes the errors."""
    return {
        (f"/{dialect.name}{path}", method): [replace(one, dialect=dialect, preferred=False) for one in spoken]
        for (path, method), spoken in common.items()
    }


def spoken_for(spoken: Sequence[Spoken], body: bytes) -> Spoken:
    """The meaning of a body. One that is no JSON object has the first's, whose reader says what is wrong with it."""
    if len(spoken) == 1:
        return spoken[0]
    try:
        read = from_json(body.removeprefix(BOM_UTF8), cache_strings="keys")
    except ValueError:
        return spoken[0]
    fields = frozenset(read) if isinstance(read, dict) else frozenset()
    meant = [one for one in spoken if one.is_meant(fields)]
    return next(iter([*meant, *(one for one in spoken if not one.route.claims), *spoken]))
