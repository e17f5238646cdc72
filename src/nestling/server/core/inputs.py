"""An input to token ids, within the limits that the request and the model set. Runs no engine and knows no HTTP."""

from typing import cast

from nestling.engine.protocol import TokenIds
from nestling.errors import TextError
from nestling.models.embedder import Embedder
from nestling.server.core import cl100k
from nestling.server.core.refusals import InvalidError
from nestling.server.core.requests import Embedding, Inputs, are_texts
from nestling.server.settings import TokenInput
from nestling.spec import ModelSpec, Role

SHORTEST_CUT = 16
"""Below so many tokens, a cut may leave nothing but the prefix, and is checked."""


def limit_of(wanted: Embedding, spec: ModelSpec) -> int | None:
    """Tokens that a text is cut to, prefix included; None where a longer text is refused."""
    most = wanted.truncate_to
    if most is None or most == -1:
        return spec.max_tokens if wanted.truncate or most == -1 else None
    if not 1 <= most <= spec.max_tokens:
        raise InvalidError(
            f"truncate_prompt_tokens={most}: expected 1 to {spec.max_tokens}, or -1 for {spec.max_tokens}",
            param="truncate_prompt_tokens",
        )
    return most


class Reader:
    """Turns inputs into token ids, as the settings say."""

    def __init__(self, mode: TokenInput) -> None:
        self._mode = mode
        self._text_of = cl100k.text_reader() if mode is TokenInput.CL100K else None

    def read(self, inputs: Inputs, embedder: Embedder, *, role: Role | None, limit: int | None) -> list[TokenIds]:
        """B inputs -> B arrays of ids for the model, each within its limit. UsageError for what is not."""
        if are_texts(inputs):
            return _tokenized(inputs, embedder, role=role or Role.QUERY, limit=limit)
        lists = cast("list[TokenIds]", inputs)
        if self._text_of is not None:
            texts = self._text_of([one.tolist() for one in lists])
            return _tokenized(texts, embedder, role=role or Role.QUERY, limit=limit)
        if self._mode is TokenInput.REJECT:
            raise _ids_refused()
        if role not in (None, Role.RAW):
            raise InvalidError("prompt_name: token ids take no prefix", param="prompt_name")
        return [_own(one, index, embedder, limit=limit) for index, one in enumerate(lists)]


def _tokenized(texts: list[str], embedder: Embedder, *, role: Role, limit: int | None) -> list[TokenIds]:
    ids = embedder.tokenize(texts, prompt_name=role, truncate=limit is not None)
    if limit is None:
        return ids
    if limit < SHORTEST_CUT and limit <= (prefix := len(embedder.tokenizer.encode([embedder.spec.prefix(role)])[0])):
        raise InvalidError(
            f"truncate_prompt_tokens={limit}: the prefix alone has {prefix} tokens", param="truncate_prompt_tokens"
        )
    return [embedder.tokenizer.cut(one, limit) for one in ids]


def _ids_refused() -> InvalidError:
    """What LangChain's default gets: the ids are another vocabulary's, and a setting of its own sends texts."""
    return InvalidError(
        "input: token ids are refused, because clients send those of OpenAI's vocabulary, which mean other texts here. "
        "Send texts: LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False. "
        "A server started with --token-input model takes this model's own ids.",
        param="input",
        code="token_input",
    )


def _own(ids: TokenIds, index: int, embedder: Embedder, *, limit: int | None) -> TokenIds:
    size, most = embedder.tokenizer.size, embedder.spec.max_tokens
    if ids.max() >= size:
        raise TextError(f"token ids go from 0 to {size - 1}", index=index)
    if limit is None and len(ids) > most:
        raise TextError(f"{len(ids)} tokens, this model takes {most}; truncate=true cuts the text", index=index)
    return ids[:limit]
