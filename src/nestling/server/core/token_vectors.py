"""Requests that need the state of every token: multi-vectors, late chunking, ranking. Knows no HTTP.

Each function is a step between reading a request and writing its answer; the scheduler runs the engine.
"""

from collections.abc import Sequence, Sized
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nestling.engine.protocol import TokenIds
from nestling.errors import EmptyTextError, ImageSizeError, InputError, TextError, UsageError
from nestling.inputs.late_chunking import ChunkedIds, Cut
from nestling.models.embedder import Embedder
from nestling.models.reranking import Scoring, token_scores, vector_scores
from nestling.server.core.inputs import tokenized
from nestling.server.core.refusals import InvalidError, TooLargeError
from nestling.server.core.requests import Inputs, Ranking, are_texts
from nestling.spec import Role
from nestling.vectors import Floats

MOST_TOKENS = 65_536
"""Most tokens of a request with a vector per token; with 128 dimensions, the answer has some 170 MB."""


def check_head(embedder: Embedder, *, param: str) -> None:
    """InvalidError naming `param` when the model has no multi-vector head; other errors of its file pass through."""
    try:
        _ = embedder.projector
    except UsageError as error:
        raise InvalidError(str(error), param=param, code="no_multivector") from None


def check_size(ids: Sequence[Sized], *, param: str) -> None:
    """TooLargeError for more than `MOST_TOKENS` tokens."""
    if (total := sum(map(len, ids))) > MOST_TOKENS:
        raise TooLargeError(
            f"{param}: {total} tokens, each with a vector; a request may have {MOST_TOKENS}", param=param
        )


def chunked(inputs: Inputs, embedder: Embedder, *, role: Role) -> ChunkedIds:
    """Consecutive chunks of one document, joined and tokenized; UsageError for other inputs."""
    if not are_texts(inputs):
        raise InvalidError("late_chunking: expected texts, not token ids", param="input")
    if "" in inputs:
        raise EmptyTextError("the text is empty", index=inputs.index(""))
    ends = np.cumsum([0, *map(len, inputs)]).tolist()
    spans = list(pairwise(ends))
    try:
        return embedder.chunk("".join(inputs), Cut(spans), prompt_name=role)
    except UsageError as error:
        if error.param != "spans":
            raise
        raise InvalidError(f"late_chunking: input{str(error).removeprefix('spans')}", param="input") from None


def candidates(wanted: Ranking, places: Sequence[int], embedder: Embedder) -> list[TokenIds]:
    """The query's token ids, then those of the documents at `places`, which are texts.

    UsageError for what cannot be scored that way.
    """
    if wanted.scoring is Scoring.MAXSIM:
        check_head(embedder, param="scoring")
    if not wanted.query.strip():
        raise InvalidError("query: the text is empty", param="query", code="invalid_input", of=EmptyTextError)
    read = partial(tokenized, embedder=embedder, role=None, reading=wanted.reading)
    try:
        asked = read([wanted.query], default=Role.QUERY)
    except TextError as error:
        said = str(error).replace("input 0", "query", 1)
        raise InvalidError(said, param="query", code="invalid_input", of=type(error)) from None
    try:
        return asked + read([str(wanted.documents[place]) for place in places], default=Role.PASSAGE)
    except TextError as error:
        raise of_document(error.at(places[error.index])) from None


def of_document(error: InputError) -> UsageError:
    """The same error in a ranking's terms: query and documents."""
    if isinstance(error, ImageSizeError):
        return TooLargeError(f"documents[{error.index}]: {error.reason}", param="documents")
    said = f"documents[{error.index}]: {error.reason}"
    return InvalidError(said, param="documents", code="invalid_input", of=type(error))


def scores(scoring: Scoring, values: Sequence[Floats]) -> NDArray[np.float64]:
    """Scores from the scheduler's results for the query and B candidates -> (B,)."""
    if scoring is Scoring.COSINE:
        return vector_scores(values[0], np.stack(values[1:]))
    return token_scores(values[0], values[1:])
