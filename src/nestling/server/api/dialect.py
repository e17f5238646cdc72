"""What a dialect of HTTP is: its routes, each with its request model and answer writer, and the shape of its errors.

A dialect is one module with a `DIALECT`, and one line in `registry`. It translates: bodies to what the service is
asked for (`core.requests`), and what that answers to bytes. Two dialects may have the same path: the body decides by
the fields that a route claims. Every path is also served below a prefix of each dialect's name (`/tei/rerank`), where
that dialect alone is spoken: what it has no route for is the others', with its own errors.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from nestling.server.api.bodies import SHORT_BODY, Body
from nestling.server.core.service import Service
from nestling.server.http.problems import Problem

Result = TypeVar("Result")
Read = TypeVar("Read", bound=Body)


@dataclass(slots=True)
class Call:
    """One request on its way through a route: its body, the parameters of its path, and warnings for its answer."""

    service: Service
    body: bytes = b""
    path: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    async def read(self, model: type[Read]) -> Read:
        """The body as the dialect's model; UsageError for one that is not."""
        found = await self.run(model.parse, self.body)
        self.service.note_unknown(found.unknown)
        return found

    async def run(self, work: Callable[..., Result], *values: object) -> Result:
        """Call `work`, whose time grows with the body: at once for a short body, otherwise in a thread."""
        return await self.service.run(work, *values, short=len(self.body) < SHORT_BODY)


Handler = Callable[[Call], AsyncGenerator[bytes, None]]
"""Yields the answer piece by piece, each once the client has taken the one before; exceptions come before the first."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path: a POST where there is a body, otherwise a GET (and HEAD).

    `also`: other paths of the same, left out of the OpenAPI document. A path parameter that takes slashes is
    `{name:path}`. `claims`: fields of a body that make a path which other dialects have too this route's;
    `preferred_by`: fields that do so where the operator prefers the dialect.
    `images`: a body may have them, and so more bytes.
    """

    path: str
    handler: Handler
    text: str
    body: type[Body] | None = None
    also: tuple[str, ...] = ()
    claims: frozenset[str] = frozenset()
    preferred_by: frozenset[str] = frozenset()
    images: bool = False

    @property
    def method(self) -> Literal["GET", "POST"]:
        """GET or POST."""
        return "POST" if self.body else "GET"


def _same_status(problem: Problem) -> int:
    return problem.status


@dataclass(frozen=True, slots=True)
class Dialect:
    """Routes that one kind of client asks for, and how it expects errors: a problem -> a JSON body and a status."""

    name: str
    routes: tuple[Route, ...]
    error: Callable[[Problem], bytes]
    status: Callable[[Problem], int] = _same_status
