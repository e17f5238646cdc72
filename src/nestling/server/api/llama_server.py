"""llama-server's dialect: `/embedding`, `/tokenize`, `/detokenize`, `/props`; `/tokenize` takes vLLM's fields too.

Facts are those of llama.cpp's tools/server: its README.md and its tests. `/embeddings` is OpenAI's where a body has
`input`, its own where it has `content` or where the operator prefers this dialect. There are no roles: a prefix that a
text begins with is its own, others get `Query: `.
"""

from collections.abc import AsyncGenerator, Sequence

from pydantic_core import to_json

from nestling._util.version import __version__
from nestling.server.api import answers, images
from nestling.server.api.bodies import Body, Texts, TextsOrIds, one_or_more_texts, texts_or_ids
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.jina import RerankRequest, rerank
from nestling.server.core.refusals import InvalidError, agreed
from nestling.server.core.requests import Embedding, Inputs, Reading, Token
from nestling.server.http.problems import Problem

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
    """true: with the ending that some models want behind a text; without it by default."""
    add_special_tokens: bool | None = None
    """The same of vLLM, which has it by default."""
    return_token_strs: bool | None = None
    """vLLM's: true adds the tokens' texts."""
    parse_special: bool | None = None
    """false: refuse texts with special tokens, which are always found."""

    @property
    def closed(self) -> bool:
        """True for tokens with the model's ending."""
        said = {"add_special": self.add_special, "add_special_tokens": self.add_special_tokens}
        wanted = agreed("add_special", said)
        return self.prompt is not None if wanted is None else wanted

    def shaped(self, found: Sequence[object]) -> object:
        """What was found for each text, without the list where the request has one text and none."""
        return found[0] if isinstance(self.content if self.prompt is None else self.prompt, str) else found

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
    """Texts or ids; also objects with a `prompt_string`, or with a `content` of parts of type text or image_url."""
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


def _inputs(value: object, most: int) -> Inputs:
    """Texts or ids, and objects in the place of texts."""
    listed = value if isinstance(value, list) else [value]
    if not any(isinstance(one, dict) for one in listed):
        return texts_or_ids(value, most=most, name="content")
    texts = texts_or_ids(["-" if isinstance(one, dict) else one for one in listed], most=most, name="content")
    pairs = enumerate(zip(listed, texts, strict=True))
    return [images.of_prompt(one, index) if isinstance(one, dict) else str(text) for index, (one, text) in pairs]


async def _embedding(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(EmbeddingRequest)
    settings = call.service.settings
    given = request.input if request.content is None else request.content
    inputs = await call.run(_inputs, given, settings.max_inputs)
    images.check_texts(inputs, most=settings.max_body_bytes)
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
            "chat_template": "",
            "chat_template_caps": {},
            "modalities": {"vision": embedder.images_refused is None, "audio": False},
            "build_info": f"nestling {__version__}",
            "is_sleeping": False,
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
    found = await call.service.tokens(texts, target, closed=request.closed)
    if request.parse_special is False and any(token.special for one in found for token in one):
        message = "parse_special=false: a text has special tokens, which are always read as such"
        raise InvalidError(message, param="parse_special")
    longest = (await call.service.loaded(target)).spec.max_tokens
    tokens = [[_piece(token) if request.with_pieces else token.id for token in one] for one in found]
    facts = {"tokens": request.shaped(tokens), "count": sum(map(len, tokens)), "max_model_len": longest}
    if request.prompt is not None:
        strings = [[token.piece.decode("utf-8", "replace") for token in one] for one in found]
        facts["token_strs"] = request.shaped(strings) if request.return_token_strs else None
    yield to_json(facts)


async def _detokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(DetokenizeRequest)
    text = await call.service.detokenized(request.tokens, call.service.catalog.target(request.model))
    yield to_json({"content": text, "prompt": text})


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "unavailable_error"}


def _error(problem: Problem) -> bytes:
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")  # noqa: PLR2004 - HTTP's
    return to_json({"error": {"code": problem.status, "message": problem.message, "type": kind}})


DIALECT = Dialect(
    name="llama-server",
    error=_error,
    routes=(
        Route("/embedding", _embedding, "llama-server: a vector for each text.", body=EmbeddingRequest, images=True),
        Route(
            "/embeddings",
            _embedding,
            "The same.",
            body=EmbeddingRequest,
            claims=frozenset({"content"}),
            preferred_by=frozenset({"input"}),
            images=True,
        ),
        Route("/reranking", rerank, "Documents ranked by relevance.", body=RerankRequest, also=("/v1/reranking",)),
        Route("/props", _props, "llama-server: what is served."),
        Route("/tokenize", _tokenize, "The model's token ids of texts.", body=TokenizeRequest),
        Route("/detokenize", _detokenize, "The text of token ids.", body=DetokenizeRequest),
    ),
)
