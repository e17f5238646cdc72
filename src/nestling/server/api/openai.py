"""OpenAI's dialect: `/v1/embeddings`, with the fields of Jina's, vLLM's and LlamaIndex's too, and `/v1/models`."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from enum import StrEnum
from functools import partial

from pydantic_core import to_json

from nestling.server.api import answers, images
from nestling.server.api.answers import Form
from nestling.server.api.bodies import Body, Mixed, TextsOrIds
from nestling.server.api.dialect import Call, Dialect, Route
from nestling.server.api.jina import JinaFields
from nestling.server.core.catalog import Served
from nestling.server.core.refusals import InvalidError, agreed
from nestling.server.core.requests import Embedded, Embedding, Inputs, Output, Reading
from nestling.vectors import Floats


class Encoding(StrEnum):
    """How a vector travels: `encoding_format`."""

    FLOAT = "float"
    BASE64 = "base64"


class Modality(StrEnum):
    """What the texts of `input` stand for, in infinity's words; it has audio too, which no model here takes."""

    TEXT = "text"
    IMAGE = "image"


class OpenAIFields(Body):
    """OpenAI's own fields."""

    input: TextsOrIds
    model: str | None = None
    """NAME or NAME/TASK or NAME/TASK.ROLE; the first served model by default."""
    dimensions: int | None = None
    """One of the trained sizes; the full width by default."""
    encoding_format: Encoding | None = None
    """Numbers, or little-endian float32 in base64."""
    user: str | None = None
    """Left alone."""


class EmbeddingRequest(JinaFields, OpenAIFields):
    """`POST /v1/embeddings`."""

    input: Mixed = None
    messages: images.Messages = None
    """vLLM's form of one input: a user's message whose content is a text or one image_url."""
    modality: Modality | None = None
    """infinity's: with image, each text of input is one, as a data URI, base64 or URL."""
    encoding_type: Form | None = None
    """The same as embedding_type."""
    prompt_name: str | None = None
    """query, passage (or document), or raw for no prefix; query by default."""
    input_type: str | None = None
    """The same as prompt_name."""
    normalize: bool | None = None
    """The same as normalized, by vLLM's name."""
    use_activation: bool | None = None
    """The same, by vLLM's newer one."""
    truncate_prompt_tokens: int | None = None
    """Cut texts on the right to so many tokens, the prefix included; -1 is the model's limit."""

    @property
    def form(self) -> Form:
        """The answer's form: an embedding type that is not `float` wins, else `encoding_format`, else float."""
        said = {"embedding_type": self.embedding_type, "encoding_type": self.encoding_type}
        wanted = agreed("embedding_type", said)
        if wanted in (None, Form.FLOAT) and self.encoding_format is Encoding.BASE64:
            return Form.BASE64
        return wanted or Form.FLOAT

    @property
    def unit_length(self) -> bool:
        """True for unit vectors."""
        names = ("normalized", "normalize", "use_activation")
        return agreed("normalized", {name: getattr(self, name) for name in names}) is not False

    @property
    def output(self) -> Output:
        """What is to be made of the inputs."""
        if self.return_multivector:
            return Output.MULTI_VECTOR
        return Output.CHUNKS if self.late_chunking else Output.VECTOR

    def check_together(self) -> None:
        """InvalidError for fields that cannot be honoured together; neither is ignored."""
        for one, other in _APART:
            if all(_given(getattr(self, name)) for name in (one, other)):
                raise InvalidError(f"{other}: not together with {one}", param=other, code="contradiction")
        if self.return_multivector and not self.unit_length:
            message = "normalized: not together with return_multivector"
            raise InvalidError(message, param="normalized", code="contradiction")


_APART = (
    ("return_multivector", "dimensions"),
    ("return_multivector", "late_chunking"),
    ("late_chunking", "truncate_prompt_tokens"),
    ("modality", "messages"),
)
"""Fields that cannot both be set: a token's vector has one size and unit length, a chunked document is whole."""


def _given(value: object) -> bool:
    """True for a value that asks for something other than the default."""
    return value not in (None, False, -1)


def _inputs(request: EmbeddingRequest, *, most: int) -> Inputs:
    if request.modality is Modality.IMAGE:
        return images.of_texts(request.input, most=most)
    return images.inputs_of(request.input, request.messages, most=most)


async def _embeddings(call: Call) -> AsyncGenerator[bytes, None]:
    request, settings = await call.read(EmbeddingRequest), call.service.settings
    request.check_together()
    form = request.form
    inputs = await call.run(partial(_inputs, request, most=settings.max_inputs))
    images.check_texts(inputs, most=settings.max_body_bytes)
    roles = {"prompt_name": request.prompt_name, "input_type": request.input_type}
    wanted = Embedding(
        inputs,
        call.service.catalog.target(request.model, task=request.task, roles=roles),
        Reading(truncate=bool(request.truncate), limit=request.truncate_prompt_tokens),
        dimensions=request.dimensions,
        normalized=request.unit_length,
        output=request.output,
    )
    name = request.model or call.service.catalog.default.name
    async with call.service.embedded(wanted) as found:
        call.warnings.extend(found.warnings)
        for piece in answers.pieces(embeddings(found, wanted.output, form=form, model=name)):
            yield piece


def embeddings(found: Embedded, output: Output, *, form: Form, model: str) -> Iterator[bytes]:
    """The parts of a `list` in the order of the inputs."""
    write = _multivector if output is Output.MULTI_VECTOR else _vector
    items = (write(index, rows, form) for index, rows in enumerate(found.values))
    yield b'{"object":"list","data":['
    yield from answers.separated(items)
    yield b'],"model":%b,"usage":%b}' % (to_json(model), to_json(answers.usage(found.tokens)))


def _vector(index: int, row: Floats, form: Form) -> Iterable[bytes]:
    """(D,) -> an item's `embedding`."""
    return b'{"object":"embedding","index":%d,"embedding":' % index, answers.vector(row, form), b"}"


def _multivector(index: int, rows: Sequence[Floats] | Floats, form: Form) -> Iterator[bytes]:
    """(T, P) -> an item's `embeddings`, each row in the form asked for."""
    yield b'{"object":"embeddings","index":%d,"embeddings":[' % index
    yield from answers.separated((answers.vector(row, form),) for row in rows)
    yield b"]}"


async def _models(call: Call) -> AsyncGenerator[bytes, None]:
    data = [_model(one) for one in await call.service.served()]
    yield to_json({"object": "list", "data": data, "engines": call.service.engines()})


async def _one_model(call: Call) -> AsyncGenerator[bytes, None]:
    yield to_json(_model(await call.service.served_as(call.path["model"])))


def _model(served: Served) -> dict[str, object]:
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "nestling",
        "max_model_len": served.max_tokens,
        "dimensions": served.dimensions,
        "tasks": served.tasks,
        **_modalities(served.images_refused),
    }


def _modalities(images_refused: str | None) -> dict[str, object]:
    if images_refused is None:
        return {"input_modalities": ["text", "image"]}
    return {"input_modalities": ["text"], "images_refused": images_refused}


DIALECT = Dialect(
    name="openai",
    error=answers.error,
    routes=(
        Route(
            "/v1/embeddings",
            _embeddings,
            "A vector for each text or image. Also at /embeddings.",
            body=EmbeddingRequest,
            also=("/embeddings",),
            images=True,
        ),
        Route(
            "/v1/models",
            _models,
            "What is served: names, longest text in tokens, vector sizes, tasks.",
            also=("/models",),
        ),
        Route(
            "/v1/models/{model:path}",
            _one_model,
            "One of them, by any name that a request may have as its model.",
            also=("/models/{model:path}",),
        ),
    ),
)
