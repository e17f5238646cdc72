"""llama-server's dialect: `/embedding`, `/tokenize`, `/detokenize`, `/props`; `/tokenize` takes vLLM's fields too.

Facts are those of llama.cpp's tools/server/README.md. `/embeddings` is OpenAI's where a body has `input`, its own where
it has `content`. There are no roles: a prefix that a text begins with is its own, others get `Query: `.
"""

from collections.abc import AsyncGenerator

from pydantic_core import to_json

from nestling._util.version import __version__
from nestling.server.api import answers
from nestling.server.api.bodies import Body, Texts, TextsOrIds, one_or_more_texts, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.jina import RerankRequest, rerank
from nestling.server.core.refusals import InvalidError, agreed
from nestling.server.core.requests import Embedding, Reading, Token

NORMS = {-1: False, 2: True}
"""`embd_normalize`: none, or Euclidean (its default); llama-server's others are no unit vectors."""


class TokenizeRequest(Body):
    """`POST /tokenize`: llama-server's `content` or vLLM's `prompt`; without a prefix unless one is asked for."""

    content: Texts | None = None
    """A text, or several: then `tokens` is a list for each."""
    prompt: Texts | None = None
    """The same as content."""
    model: str | None = None
    """As for embeddings."""
    task: str | None = None
    """As for embeddings."""
    prompt_name: str | None = None
    """query or passage puts that prefix in front; raw by default."""
    with_pieces: bool | None = None
    """true: each token is its id and its text, or its bytes where it is a part of a character."""
    add_special: bool | None = None
    """false: without the ending that some models want behind a text."""

    @property
    def is_one(self) -> bool:
        """True for a text, False for a list of texts."""
        return isinstance(self.content if self.prompt is None else self.prompt, str)

    @property
    def texts(self) -> list[str]:
        """The text or texts."""
        agreed("content", {"content": self.content, "prompt": self.prompt})
        if self.prompt is not None:
            return one_or_more_texts(self.prompt, param="prompt")
        return one_or_more_texts(self.content, param="content")


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None
    """As for embeddings."""


class EmbeddingRequest(Body):
    """`POST /embedding`."""

    content: TextsOrIds | None = None
    input: TextsOrIds | None = None
    """The same as content."""
    model: str | None = None
    """NAME or NAME/TASK.ROLE; the first served model by default."""
    embd_normalize: int | None = None
    """2: unit vectors (default); -1: the pooled vectors at their own length."""

    @property
    def normalized(self) -> bool:
        """True for unit vectors."""
        wanted = 2 if self.embd_normalize is None else self.embd_normalize
        if wanted not in NORMS:
            raise InvalidError(f"embd_normalize={wanted}: expected 2 or -1", param="embd_normalize")
        return NORMS[wanted]


async def _embedding(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(EmbeddingRequest)
    given = request.input if request.content is None else request.content
    inputs = await call.run(lambda: texts_or_ids(given, most=call.service.settings.max_inputs, name="content"))
    target, reading = call.service.catalog.target(request.model), Reading(typed=True)
    async with call.service.embedded(Embedding(inputs, target, reading, normalized=request.normalized)) as found:
        call.warnings.extend(found.warnings)
        items = (
            (b'{"index":%d,"embedding":[%b]}' % (index, answers.vector(row)),) for index, row in enumerate(found.values)
        )
        for piece in answers.pieces(answers.listed(items)):
            yield piece


async def _props(call: Call) -> AsyncGenerator[bytes, None]:
    embedder = await call.service.loaded(call.service.catalog.target(None))
    yield to_json(
        {
            "default_generation_settings": {"n_ctx": embedder.spec.max_tokens},
            "total_slots": 1,
            "model_path": str(embedder.path or ""),
            "model_alias": call.service.catalog.default.name,
            "build_info": f"nestling {__version__}",
        }
    )


def _piece(token: Token) -> dict[str, object]:
    try:
        return {"id": token.id, "piece": token.piece.decode("utf-8")}
    except UnicodeDecodeError:
        return {"id": token.id, "piece": list(token.piece)}


async def _tokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(TokenizeRequest)
    texts = request.texts
    roles = {"prompt_name": request.prompt_name}
    target = call.service.catalog.target(request.model, task=request.task, roles=roles)
    found = await call.service.tokens(texts, target, closed=request.add_special is not False)
    longest = (await call.service.loaded(target)).spec.max_tokens
    write = _piece if request.with_pieces else _id
    tokens = [[write(token) for token in one] for one in found]
    shown = tokens[0] if request.is_one else tokens
    yield to_json({"tokens": shown, "count": sum(map(len, tokens)), "max_model_len": longest})


def _id(token: Token) -> int:
    return token.id


async def _detokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(DetokenizeRequest)
    text = await call.service.detokenized(request.tokens, call.service.catalog.target(request.model))
    yield to_json({"content": text, "prompt": text})


DIALECT = Dialect(
    name="llama-server",
    error=answers.error,
    routes=(
        Route("/embedding", _embedding, "llama-server: a vector for each text.", body=EmbeddingRequest),
        Route(
            "/embeddings",
            _embedding,
            "The same.",
            body=EmbeddingRequest,
            claims=frozenset({"content"}),
        ),
        Route("/reranking", rerank, "Documents by nearness.", body=RerankRequest, also=("/v1/reranking",)),
        Route("/props", _props, "llama-server: what is served."),
        Route("/tokenize", _tokenize, "The model's token ids of texts.", body=TokenizeRequest),
        Route("/detokenize", _detokenize, "The text of token ids.", body=DetokenizeRequest),
    ),
)
