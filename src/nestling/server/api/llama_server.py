"""llama-server's dialect: `/tokenize` and `/detokenize`, which also take the fields of vLLM's."""

from collections.abc import AsyncGenerator

from pydantic_core import to_json

from nestling.server.api import answers
from nestling.server.api.bodies import Body, Texts, one_or_more_texts
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.core.refusals import agreed


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


async def _tokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(TokenizeRequest)
    texts = request.texts
    roles = {"prompt_name": request.prompt_name}
    target = call.service.catalog.target(request.model, task=request.task, roles=roles)
    tokens, longest = await call.service.tokenized(texts, target)
    shown = tokens[0] if request.is_one else tokens
    yield to_json({"tokens": shown, "count": sum(map(len, tokens)), "max_model_len": longest})


async def _detokenize(call: Call) -> AsyncGenerator[bytes, None]:
    request = await call.read(DetokenizeRequest)
    text = await call.service.detokenized(request.tokens, call.service.catalog.target(request.model))
    yield to_json({"content": text, "prompt": text})


DIALECT = Dialect(
    name="llama-server",
    error=answers.error,
    routes=(
        Route("/tokenize", _tokenize, "The model's token ids of texts.", body=TokenizeRequest),
        Route("/detokenize", _detokenize, "The text of token ids.", body=DetokenizeRequest),
    ),
)
