"""Every door by which an image comes into the server: for each, a request of some inputs, and what its answer says.

An input is a text (str) or an `Image`: what stands for the picture in JSON, base64, a data URI or a URL.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Image:
    """A picture as JSON has it: a data URI, bare base64 or a URL."""

    text: str


Inputs = Sequence[str | Image]
Read = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Door:
    """A path, the body of a request, where its answer has the vectors and the tokens, and its words for an error.

    `mixed`: takes texts beside images; `single`: takes one input; `uris`: takes data URIs of images alone, since any
    other text is a text there.
    """

    path: str
    body: Callable[[Inputs], dict[str, Any]]
    rows: Read
    tokens: Read
    said: Read
    mixed: bool = True
    single: bool = False
    uris: bool = False
    too_large: int = 413

    def ask(self, url: str, inputs: Inputs) -> httpx.Response:
        """Send a request of these inputs."""
        return httpx.post(url + self.path, json=self.body(inputs), timeout=60)

    def vectors(self, answer: httpx.Response) -> NDArray[np.float32]:
        """(B, D) of an answer that must be one."""
        assert answer.status_code == 200, answer.text
        return np.array(self.rows(answer.json()), np.float32)

    def refused(self, answer: httpx.Response, status: int, *parts: str) -> str:
        """The message of an answer that must be an error of this status with these parts in it."""
        statuses = {413, self.too_large} if status == 413 else {status}
        assert answer.status_code in statuses, answer.text
        message: str = self.said(answer.json())
        for part in parts:
            assert part in message, message
        assert "at 0x" not in message
        return message


def _jina(inputs: Inputs) -> dict[str, Any]:
    return {"input": [{"image": one.text} if isinstance(one, Image) else {"text": one} for one in inputs]}


def _modality(inputs: Inputs) -> dict[str, Any]:
    return {"input": [one.text for one in inputs if isinstance(one, Image)], "modality": "image"}


def _bare(inputs: Inputs) -> dict[str, Any]:
    return {"input": [one.text if isinstance(one, Image) else one for one in inputs]}


def _part(one: str | Image, kind: str = "image_url", *, inside: bool = True) -> dict[str, Any]:
    if isinstance(one, str):
        return {"type": "text", "text": one}
    return {"type": kind, kind: {"url": one.text} if inside else one.text}


def _messages(inputs: Inputs) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [_part(one) for one in inputs]}]}


def _images(inputs: Inputs) -> dict[str, Any]:
    images = [one.text for one in inputs if isinstance(one, Image)]
    return {"images": images, "input_type": "image", "embedding_types": ["float"]}


def _contents(kind: str, *, inside: bool, **more: Any) -> Callable[[Inputs], dict[str, Any]]:
    def body(inputs: Inputs) -> dict[str, Any]:
        return {"inputs": [{"content": [_part(one, kind, inside=inside)]} for one in inputs], **more}

    return body


def _data(answer: dict[str, Any]) -> Any:
    return [one.get("embedding") or one["data"] for one in answer["data"]]


def _floats(answer: dict[str, Any]) -> Any:
    return answer["embeddings"]["float"]


_OPENAI: dict[str, Any] = {
    "rows": _data,
    "tokens": lambda answer: answer["usage"]["prompt_tokens"],
    "said": lambda answer: answer["error"]["message"],
}
_COHERE: dict[str, Any] = {
    "rows": _floats,
    "tokens": lambda answer: answer["meta"]["billed_units"]["input_tokens"],
    "said": lambda answer: answer["message"],
    "too_large": 400,
}
_VOYAGE: dict[str, Any] = {
    "rows": _data,
    "tokens": lambda answer: answer["usage"]["total_tokens"],
    "said": lambda answer: answer["detail"],
}
_V2 = _contents("image_url", inside=True, input_type="search_document", embedding_types=["float"])
DOORS = {
    "openai, objects": Door("/v1/embeddings", _jina, **_OPENAI),
    "openai, data URIs": Door("/v1/embeddings", _bare, uris=True, **_OPENAI),
    "infinity": Door("/embeddings", _modality, mixed=False, **_OPENAI),
    "openai, messages": Door("/v1/embeddings", _messages, single=True, **_OPENAI),
    "vllm, objects": Door("/pooling", _jina, **_OPENAI),
    "vllm, messages": Door("/pooling", _messages, single=True, **_OPENAI),
    "cohere 1": Door("/v1/embed", _images, mixed=False, **_COHERE),
    "cohere 1, short": Door("/embed", _images, mixed=False, **_COHERE),
    "cohere 2, images": Door("/v2/embed", _images, mixed=False, **_COHERE),
    "cohere 2, inputs": Door("/v2/embed", _V2, **_COHERE),
    "voyage, base64": Door("/v1/multimodalembeddings", _contents("image_base64", inside=False), **_VOYAGE),
    "voyage, url": Door("/v1/multimodalembeddings", _contents("image_url", inside=False), **_VOYAGE),
}
