"""Requests of clients that cannot run here, as their sources make them: facts of each, not code.

`asks` are the paths that the client wants answered first. A vector list in the answer is `passages` or `query` as in
`table`.
"""

import base64
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.contract.clients.table import DOCUMENTS, MODEL, PASSAGES, QUERY

TYPED = [f"Passage: {text}" for text in DOCUMENTS]


@dataclass(frozen=True, slots=True)
class Request:
    """`source`: repository, file and, where one was read, the release; `read`: the answer -> what `table` names."""

    api: str
    source: str
    path: str
    body: Mapping[str, Any]
    read: Callable[[Any], dict[str, Any]]
    asks: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def embeddings(answer: Any) -> dict[str, Any]:
    """Ollama's answer."""
    return {"passages": answer["embeddings"]}


def embedding(answer: Any) -> dict[str, Any]:
    """Ollama's old answer."""
    return {"query": answer["embedding"]}


def data(answer: Any) -> dict[str, Any]:
    """OpenAI's answer."""
    return {"passages": [one["embedding"] for one in answer["data"]]}


def base64_data(answer: Any) -> dict[str, Any]:
    """OpenAI's answer with vectors in base64."""
    rows = [base64.b64decode(one["embedding"]) for one in answer["data"]]
    return {"passages": [struct.unpack(f"<{len(row) // 4}f", row) for row in rows]}


def scores(answer: list[dict[str, Any]]) -> dict[str, Any]:
    """TEI's answer to `/rerank`."""
    ordered = sorted(answer, key=lambda one: -one["score"])
    return {"ranking": [one["index"] for one in ordered]}


def documented_order(answer: Any) -> dict[str, Any]:
    """Cohere's answer with documents, whose order is that of the places."""
    order = [one["index"] for one in answer["results"]]
    texts = [one["document"]["text"] for one in answer["results"]]
    return {"ranking": order if texts == [DOCUMENTS[place] for place in order] else texts}


OLLAMA, TEI = "Ollama", "Text Embeddings Inference"
BEARER = {"Authorization": "Bearer "}
WEBUI = "open-webui/open-webui backend/open_webui/retrieval/utils.py"
ANYTHING = "Mintplex-Labs/anything-llm server/utils/EmbeddingEngines"
CONTINUE = "continuedev/continue core/llm/llms"
PGAI = "timescale/pgai projects/pgai/pgai/vectorizer/embedders"
SPRING = "spring-projects/spring-ai models"
LANGCHAIN4J = "langchain4j/langchain4j"
KERNEL = "microsoft/semantic-kernel dotnet/src/Connectors"

REQUESTS: dict[str, Request] = {
    "Open WebUI, Ollama": Request(
        OLLAMA, f"{WEBUI}, generate_ollama_batch_embeddings", "/api/embed",
        {"input": DOCUMENTS, "model": PASSAGES, "truncate": True}, embeddings,
        asks=("/api/tags", "/api/version"), headers=BEARER,
    ),
    "Open WebUI, OpenAI": Request(
        "OpenAI", f"{WEBUI}, generate_openai_batch_embeddings", "/v1/embeddings",
        {"input": DOCUMENTS, "model": PASSAGES}, data, asks=("/v1/models",), headers=BEARER,
    ),
    "AnythingLLM, Ollama": Request(
        OLLAMA, f"{ANYTHING}/ollama/index.js, by the package ollama", "/api/embed",
        {"model": PASSAGES, "input": DOCUMENTS, "options": {"num_ctx": 8192}}, embeddings, asks=("/", "/api/tags"),
    ),
    "AnythingLLM, OpenAI": Request(
        "OpenAI", f"{ANYTHING}/genericOpenAi/index.js, by the package openai 4", "/v1/embeddings",
        {"model": PASSAGES, "input": DOCUMENTS}, data,
    ),
    "Continue, Ollama": Request(
        OLLAMA, f"{CONTINUE}/Ollama.ts, _embed", "/api/embed", {"model": PASSAGES, "input": DOCUMENTS}, embeddings,
        asks=("/api/tags",),
    ),
    "Continue, TEI": Request(
        TEI, f"{CONTINUE}/HuggingFaceTEI.ts, _embed", "/embed", {"inputs": TYPED}, lambda answer: {"passages": answer},
        asks=("/info",),
    ),
    "Continue, TEI, rerank": Request(
        TEI, f"{CONTINUE}/HuggingFaceTEI.ts, rerank", "/rerank",
        {"query": QUERY, "return_text": False, "raw_scores": False, "texts": DOCUMENTS, "truncation_direction": "Right",
         "truncate": True},
        scores,
    ),
    "Continue, Cohere": Request(
        "Cohere", f"{CONTINUE}/Cohere.ts, _embed", "/v1/embed",
        {"texts": DOCUMENTS, "model": MODEL, "input_type": "search_document", "embedding_types": ["float"],
         "truncate": "END"},
        lambda answer: {"passages": answer["embeddings"]["float"]},
    ),
    "Continue, Cohere, rerank": Request(
        "Cohere", f"{CONTINUE}/Cohere.ts, rerank", "/v1/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS},
        lambda answer: {"ranking": [one["index"] for one in answer["results"]]},
    ),
    "LiteLLM, Cohere, rerank": Request(
        "Cohere", "BerriAI/litellm litellm/llms/cohere/rerank_v2/transformation.py of 1.110", "/v2/rerank",
        {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "return_documents": True}, documented_order,
    ),
    "pgai vectorizer, Ollama": Request(
        OLLAMA, f"{PGAI}/ollama.py, by the package ollama", "/api/embed",
        {"model": PASSAGES, "input": DOCUMENTS, "keep_alive": "5m"}, embeddings,
    ),
    "pgai vectorizer, OpenAI": Request(
        "OpenAI", f"{PGAI}/openai.py, by the package openai", "/v1/embeddings",
        {"input": DOCUMENTS, "model": PASSAGES, "encoding_format": "float"}, data,
    ),
    "Spring AI, Ollama": Request(
        OLLAMA, f"{SPRING}/spring-ai-ollama/.../api/OllamaApi.java, EmbeddingsRequest", "/api/embed",
        {"model": PASSAGES, "input": DOCUMENTS, "keep_alive": 300.0, "options": {"num_batch": 512}, "truncate": True},
        embeddings, asks=("/api/tags",),
    ),
    "Spring AI, OpenAI": Request(
        "OpenAI", f"{SPRING}/spring-ai-openai/.../api/OpenAiApi.java of 1.0, EmbeddingRequest", "/v1/embeddings",
        {"input": DOCUMENTS, "model": PASSAGES, "encoding_format": "float"}, data,
    ),
    "LangChain4j, Ollama": Request(
        OLLAMA, f"{LANGCHAIN4J} langchain4j-ollama/.../OllamaEmbeddingModel.java, embedAll", "/api/embed",
        {"model": PASSAGES, "input": DOCUMENTS}, embeddings,
    ),
    "LangChain4j, OpenAI": Request(
        "OpenAI", f"{LANGCHAIN4J} langchain4j-open-ai/.../embedding/EmbeddingRequest.java", "/v1/embeddings",
        {"model": PASSAGES, "input": DOCUMENTS, "dimensions": 256}, data,
    ),
    "Semantic Kernel, Ollama": Request(
        OLLAMA, f"{KERNEL}/Connectors.Ollama, by OllamaSharp src/Models/Embed.cs", "/api/embed",
        {"model": PASSAGES, "input": DOCUMENTS, "options": None}, embeddings,
    ),
    "Semantic Kernel, Ollama, old": Request(
        OLLAMA, f"{KERNEL}/Connectors.Ollama, OllamaTextEmbeddingGenerationService of 2024", "/api/embeddings",
        {"model": MODEL, "prompt": QUERY}, embedding,
    ),
    "Semantic Kernel, OpenAI": Request(
        "OpenAI", f"{KERNEL}/Connectors.OpenAI/Core/ClientCore.Embeddings.cs, by the package OpenAI for .NET",
        "/v1/embeddings", {"model": PASSAGES, "input": DOCUMENTS, "encoding_format": "base64"}, base64_data,
    ),
}  # fmt: skip
