"""Inputs to token ids, within the limits of the request and the model. Runs no engine and knows no HTTP."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from nestling.engine.protocol import TokenIds
from nestling.errors import TextError, TextLengthError
from nestling.models.embedder import Embedder
from nestling.server.core import cl100k
from nestling.server.core.refusals import InvalidError
from nestling.server.core.requests import Embedding, Ranking, Reading, Token, are_texts
from nestling.server.setting_values import TokenInput
from nestling.spec import ModelSpec, Role

SHORTEST_CUT = 16
"""Tokens below which a cut may leave nothing but the prefix, and is checked."""


def limit_of(reading: Reading, spec: ModelSpec) -> int | None:
    """Tokens to which a text is truncated, prefix included; None where a longer text is refused."""
    most = reading.limit
    if most is None or most == -1:
        return _longest(reading, spec) if reading.truncate or most == -1 else None
    if not 1 <= most <= spec.max_tokens:
        raise InvalidError(
            f"truncate_prompt_tokens={most}: expected 1 to {spec.max_tokens}, or -1 for {spec.max_tokens}",
            param="truncate_prompt_tokens",
        )
    return most


def _longest(reading: Reading, spec: ModelSpec) -> int:
    """Tokens of the longest text, prefix included: the model's limit, or the client's if that is lower."""
    return min(reading.longest or spec.max_tokens, spec.max_tokens)


class Reader:
    """Turns inputs into token ids; `mode` says what a client's own token ids mean."""

    def __init__(self, mode: TokenInput) -> None:
        self._mode = mode
        self._text_of = cl100k.text_reader() if mode is TokenInput.CL100K else None

    def read(self, wanted: Embedding, embedder: Embedder) -> list[TokenIds]:
        """B inputs -> B arrays of ids for the model, each within its limit. UsageError for an input that is not."""
        inputs, role, reading = wanted.inputs, wanted.target.role, wanted.reading
        if are_texts(inputs):
            return tokenized(inputs, embedder, role=role, reading=reading, default=reading.default)
        lists = cast("list[TokenIds]", inputs)
        if self._text_of is not None:
            texts = self._text_of([one.tolist() for one in lists])
            return tokenized(texts, embedder, role=role, reading=reading, default=reading.default)
        if self._mode is TokenInput.REJECT:
            raise _ids_refused()
        if role not in (None, Role.RAW):
            raise InvalidError("prompt_name: token ids take no prefix", param="prompt_name")
        limit = limit_of(reading, embedder.spec)
        return [_own(one, index, embedder, limit=limit) for index, one in enumerate(lists)]


def tokenized(
    texts: Sequence[str], embedder: Embedder, *, role: Role | None, reading: Reading, default: Role = Role.QUERY
) -> list[TokenIds]:
    """B texts -> B arrays of ids: prefix, text, ending, within the limit. UsageError for a text that is not."""
    if not (role is None and reading.typed and any(typed := _are_typed(texts, embedder.spec))):
        return _read(texts, embedder, role=role or default, reading=reading)
    as_typed = _read(texts, embedder, role=Role.RAW, reading=reading)
    prefixed = _read(texts, embedder, role=default, reading=reading)
    return [one if has else other for has, one, other in zip(typed, as_typed, prefixed, strict=True)]


def tokens_of(text: str, embedder: Embedder, role: Role, *, closed: bool) -> list[Token]:
    """A text's tokens, counting characters from the role's prefix on; without the ending unless `closed`."""
    tokenizer = embedder.tokenizer
    ids, places = tokenizer.encode_with_offsets(embedder.spec.prefix(role) + text)
    ending = len(tokenizer.close(ids[:0]))
    count = len(ids) - (0 if closed else ending)
    pieces, special = tokenizer.pieces(ids[:count]), tokenizer.special
    rows = zip(ids[:count].tolist(), pieces, places[:count].tolist(), strict=True)
    return [Token(number, piece, number in special, start, stop) for number, piece, (start, stop) in rows]


def doubled(texts: Sequence[str], spec: ModelSpec, *, role: Role | None, reading: Reading) -> list[str]:
    """A warning if texts that already begin with one of the model's prefixes got a second one."""
    if role is Role.RAW or (role is None and reading.typed):
        return []
    places = [index for index, typed in enumerate(_are_typed(texts, spec)) if typed]
    if not places:
        return []
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return [f"input {places[0]}{more}: begins with a prefix and got another; prompt_name=raw adds none"]


def warnings_of(wanted: Embedding | Ranking, spec: ModelSpec) -> list[str]:
    """The warnings for a request's texts."""
    if isinstance(wanted, Ranking):
        texts = [wanted.query, *(one for one in wanted.documents if isinstance(one, str))]
        return doubled(texts, spec, role=None, reading=wanted.reading)
    if not are_texts(wanted.inputs):
        return []
    return doubled(wanted.inputs, spec, role=wanted.target.role, reading=wanted.reading)


def _are_typed(texts: Sequence[str], spec: ModelSpec) -> list[bool]:
    prefixes = tuple(prefix for prefix in spec.prefixes.values() if prefix)
    return [text.startswith(prefixes) for text in texts]


def _read(texts: Sequence[str], embedder: Embedder, *, role: Role, reading: Reading) -> list[TokenIds]:
    """Token ids of texts with the role's prefix, each within the limit or truncated to it."""
    limit = limit_of(reading, embedder.spec)
    ids = embedder.tokenize(texts, prompt_name=role, truncate=limit is not None)
    if limit is None:
        return _within(ids, reading)
    prefix = embedder.tokenizer.encode([embedder.spec.prefix(role)])[0]
    if limit < SHORTEST_CUT and limit <= len(prefix):
        name = reading.longest_name if reading.longest else "truncate_prompt_tokens"
        raise InvalidError(f"{name}={limit}: the prefix alone has {len(prefix)} tokens", param=name)
    if not reading.from_left:
        return [embedder.tokenizer.cut(one, limit) for one in ids]
    return [
        _last(one, text, embedder, role=role, limit=limit) if len(one) >= limit else one
        for one, text in zip(ids, texts, strict=True)
    ]


def _within(ids: list[TokenIds], reading: Reading) -> list[TokenIds]:
    """The ids; TextLengthError for a text of more tokens than the client allows."""
    for index, one in enumerate(ids):
        if reading.longest and len(one) > reading.longest:
            longer = f"{len(one)} tokens, {reading.longest_name} allows {reading.longest}; truncate=true cuts the text"
            raise TextLengthError(longer, index=index)
    return ids


def _last(ids: TokenIds, text: str, embedder: Embedder, *, role: Role, limit: int) -> TokenIds:
    """The prefix and the last tokens of a text that may be too long: (T,) -> at most (limit,)."""
    prefix, tokenizer = embedder.spec.prefix(role), embedder.tokenizer
    whole, head = tokenizer.encode([prefix + text, prefix])
    room = limit - len(tokenizer.close(whole[:0]))
    if len(whole) <= room:
        return ids
    kept = 0
    while kept < len(head) and head[kept] == whole[kept]:
        kept += 1
    return tokenizer.close(np.concatenate([whole[:kept], whole[len(whole) - (room - kept) :]]))


def _ids_refused() -> InvalidError:
    """The error for LangChain's default, which sends ids of another vocabulary; one of its settings sends texts."""
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
        raise TextError(f"expected token ids from 0 to {size - 1}", index=index)
    if limit is None and len(ids) > most:
        raise TextLengthError(f"{len(ids)} tokens, this model takes {most}; truncate=true cuts the text", index=index)
    return ids[:limit]
