"""One recorded answer of every route of every dialect: the shape that its project's documentation or tests show.

An answer here has the fields and types of the recorded one, with short vectors. `more` names fields that ours has
besides. `ANYTHING` stands where a project says that the content is free.
"""

from dataclasses import dataclass
from typing import Any

ANYTHING: Any = object()
PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="
"""One white pixel."""
QUERY, PASSAGE = "How do I open a socket?", "socket(2) creates an endpoint for communication."


@dataclass(frozen=True, slots=True)
class Example:
    """A request to one route and the recorded answer; a GET where there is no body."""

    dialect: str
    path: str
    body: dict[str, Any] | None
    answer: Any
    more: frozenset[str] = frozenset()
    url: str = ""


def example(dialect: str, path: str, body: Any, answer: Any, *more: str, url: str = "") -> Example:
    return Example(dialect, path, body, answer, frozenset(more), url or path)


VECTOR = [0.5, -0.25]
USAGE = {"prompt_tokens": 8, "total_tokens": 8}

# OpenAI's API reference: embeddings, models.
OPENAI = [
    example(
        "openai", "/v1/embeddings", {"model": "starter", "input": QUERY, "encoding_format": "float"},
        {
            "object": "list", "data": [{"object": "embedding", "embedding": VECTOR, "index": 0}],
            "model": "text-embedding-ada-002", "usage": USAGE,
        },
    ),
    example(
        "openai", "/v1/models", None,
        {"object": "list", "data": [{"id": "m", "object": "model", "created": 1686935002, "owned_by": "openai"}]},
        "engines", "max_model_len", "dimensions", "tasks", "input_modalities",
    ),
    example(
        "openai", "/v1/models/{model:path}", None,
        {"id": "m", "object": "model", "created": 1686935002, "owned_by": "openai"},
        "max_model_len", "dimensions", "tasks", "input_modalities", url="/v1/models/starter",
    ),
]  # fmt: skip

# Jina's OpenAPI document of api.jina.ai.
JINA = [
    example(
        "jina", "/v1/rerank",
        {"model": "starter", "query": QUERY, "documents": [PASSAGE], "top_n": 1, "return_documents": True},
        {
            "model": "jina-reranker-v2-base-multilingual", "usage": {"total_tokens": 815, "prompt_tokens": 815},
            "results": [{"index": 0, "document": {"text": "..."}, "relevance_score": 0.95}],
        },
        "object", "scoring", "images", "image_tokens",
    ),
]  # fmt: skip

# llama.cpp, tools/server: README.md, tests/unit/test_embedding.py, test_tokenize.py, test_rerank.py.
EMBEDDING = [{"index": 0, "embedding": [VECTOR]}]
LLAMA_SERVER = [
    example("llama-server", "/embedding", {"content": QUERY}, EMBEDDING),
    example("llama-server", "/embeddings", {"content": [QUERY]}, EMBEDDING),
    example(
        "llama-server", "/reranking", {"query": QUERY, "documents": ["hi", PASSAGE]},
        {
            "model": "m", "object": "list", "usage": USAGE, "results": [{"index": 0, "relevance_score": 0.9}],
        },
        "scoring", "images", "image_tokens",
    ),
    example(
        "llama-server", "/props", None,
        {
            "default_generation_settings": ANYTHING, "total_slots": 1, "model_path": "m.gguf", "chat_template": "...",
            "chat_template_caps": {}, "modalities": {"vision": False}, "build_info": "b1-abc", "is_sleeping": False,
        },
        "model_alias", "audio",
    ),
    example(
        "llama-server", "/tokenize", {"content": QUERY, "with_pieces": True},
        {"tokens": [{"id": 123, "piece": "Hello"}]}, "count", "max_model_len",
    ),
    example("llama-server", "/detokenize", {"tokens": [40, 41]}, {"content": "..."}, "prompt"),
]  # fmt: skip

# Ollama's docs/api.md; `context_length` of /api/ps is in its api/types.go.
DETAILS = {
    "parent_model": "", "format": "gguf", "family": "qwen2", "families": ["qwen2"], "parameter_size": "7.6B",
    "quantization_level": "Q4_K_M",
}  # fmt: skip
LISTED = {"name": "m:latest", "model": "m:latest", "size": 4683075271, "digest": "0a8c", "details": DETAILS}
OLLAMA = [
    example(
        "ollama", "/api/embed", {"model": "starter", "input": [QUERY, "a"]},
        {
            "model": "all-minilm", "embeddings": [VECTOR, VECTOR], "total_duration": 14143917,
            "load_duration": 1019500, "prompt_eval_count": 8,
        },
    ),
    example("ollama", "/api/embeddings", {"model": "starter", "prompt": QUERY}, {"embedding": VECTOR}),
    example("ollama", "/api/tags", None, {"models": [{**LISTED, "modified_at": "2025-05-10T08:06:48.63-07:00"}]}),
    example(
        "ollama", "/api/ps", None,
        {"models": [{**LISTED, "expires_at": "2024-06-04T14:38:31.8-07:00", "size_vram": 1, "context_length": 4096}]},
    ),
    example(
        "ollama", "/api/show", {"model": "starter"},
        {
            "modelfile": "# ...", "parameters": "num_ctx 4096", "template": "...", "details": DETAILS,
            "model_info": ANYTHING, "capabilities": ["embedding"],
        },
        "modified_at",
    ),
    example("ollama", "/api/version", None, {"version": "0.5.1"}),
]  # fmt: skip

# text-embeddings-inference's OpenAPI document and router/src/http/types.rs.
TEI = [
    example("tei", "/embed", {"inputs": QUERY}, [VECTOR]),
    example("tei", "/embed_all", {"inputs": [QUERY]}, [[VECTOR]]),
    example(
        "tei", "/rerank", {"query": QUERY, "texts": [PASSAGE], "return_text": True},
        [{"index": 0, "text": "Deep Learning is ...", "score": 0.9}],
    ),
    example(
        "tei", "/tokenize", {"inputs": QUERY}, [[{"id": 0, "text": "test", "special": False, "start": 0, "stop": 2}]]
    ),
    example("tei", "/decode", {"ids": [40, 41]}, ["test"]),
    example(
        "tei", "/info", None,
        {
            "model_id": "thenlper/gte-base", "model_sha": None, "model_dtype": "float16", "served_model_name": "m",
            "model_type": {"embedding": {"pooling": "cls"}}, "max_concurrent_requests": 128, "max_input_length": 512,
            "max_batch_tokens": ANYTHING, "max_batch_requests": None, "max_client_batch_size": 32,
            "auto_truncate": True, "tokenization_workers": 4, "version": "0.5.0", "sha": None, "docker_label": None,
        },
    ),
]  # fmt: skip

# Cohere's API reference and the response types of its Python package.
COHERE_TEXTS = {"model": "starter", "texts": ["hello", "goodbye"], "input_type": "classification"}
FLOATS = {
    "response_type": "embeddings_floats", "id": "54910170-852f", "embeddings": [VECTOR, VECTOR], "texts": ["a", "b"],
    "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 2}},
}  # fmt: skip
RANKED = {
    "id": "07734bd2-2473", "results": [{"index": 3, "relevance_score": 0.999071}],
    "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
}  # fmt: skip
COHERE = [
    example(
        "cohere", "/v2/embed", COHERE_TEXTS | {"embedding_types": ["float"]},
        FLOATS | {"response_type": "embeddings_by_type", "embeddings": {"float": [VECTOR, VECTOR]}},
    ),
    example("cohere", "/v1/embed", COHERE_TEXTS, FLOATS),
    example("cohere", "/embed", COHERE_TEXTS, FLOATS),
    example("cohere", "/v2/rerank", {"model": "starter", "query": QUERY, "documents": [PASSAGE]}, RANKED),
    example(
        "cohere", "/v1/rerank",
        {"query": QUERY, "documents": [{"text": PASSAGE}], "rank_fields": ["text"], "return_documents": True},
        RANKED | {"results": [{"document": {"text": "..."}, "index": 3, "relevance_score": 0.98}]},
    ),
]  # fmt: skip

# Voyage's API reference.
VOYAGE = [
    example(
        "voyage", "/v1/embeddings", {"model": "starter", "input": [QUERY], "truncation": True},
        {
            "object": "list", "data": [{"object": "embedding", "embedding": VECTOR, "index": 0}],
            "model": "voyage-3.5", "usage": {"total_tokens": 10},
        },
    ),
    example(
        "voyage", "/v1/multimodalembeddings",
        {
            "model": "starter", "input_type": "document", "truncation": True,
            "inputs": [{"content": [{"type": "image_base64", "image_base64": PICTURE}]}],
        },
        {
            "object": "list", "data": [{"object": "embedding", "embedding": VECTOR, "index": 0}],
            "model": "voyage-multimodal-3", "usage": {"text_tokens": 5, "image_pixels": 2000000, "total_tokens": 3576},
        },
    ),
    example(
        "voyage", "/v1/rerank", {"model": "starter", "query": QUERY, "documents": [PASSAGE], "top_k": 1},
        {
            "object": "list", "data": [{"relevance_score": 0.4375, "index": 0}], "model": "rerank-2",
            "usage": {"total_tokens": 26},
        },
    ),
]  # fmt: skip

# vLLM's documentation of its pooling models.
VLLM = [
    example(
        "vllm", "/pooling", {"model": "starter", "input": QUERY},
        {
            "id": "pool-1", "object": "list", "created": 1, "model": "m", "usage": USAGE,
            "data": [{"index": 0, "object": "pooling", "data": VECTOR}],
        },
    ),
    example(
        "vllm", "/v1/score", {"model": "starter", "text_1": QUERY, "text_2": [PASSAGE]},
        {
            "id": "score-1", "object": "list", "created": 693447, "model": "m", "usage": USAGE,
            "data": [{"index": 0, "object": "score", "score": 1}],
        },
    ),
    example(
        "vllm", "/rerank", {"model": "starter", "query": QUERY, "documents": [PASSAGE], "use_activation": True},
        {
            "id": "rerank-1", "model": "m", "usage": {"total_tokens": 56},
            "results": [{"index": 1, "document": {"text": "..."}, "relevance_score": 0.99}],
        },
        "prompt_tokens",
    ),
]  # fmt: skip

EXAMPLES = [*OPENAI, *JINA, *LLAMA_SERVER, *OLLAMA, *TEI, *COHERE, *VOYAGE, *VLLM]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bad request to a dialect's route, the status and the shape of the recorded error."""

    dialect: str
    url: str
    body: dict[str, Any]
    status: int
    answer: Any


LONG = "word " * 40_000
OPENAI_ERROR = {"error": {"message": "m", "type": "invalid_request_error", "param": ANYTHING, "code": ANYTHING}}
LLAMA_ERROR = {"error": {"code": 400, "message": "m", "type": "invalid_request_error"}}
VLLM_ERROR = {"error": {"message": "m", "type": "BadRequestError", "param": ANYTHING, "code": 400}}
TEI_ERROR = {"error": "m", "error_type": "validation"}

REFUSALS = [
    Refusal("openai", "/v1/embeddings", {"input": []}, 400, OPENAI_ERROR),
    Refusal("jina", "/jina/v1/rerank", {"query": "a", "documents": [1]}, 400, OPENAI_ERROR),
    Refusal("jina", "/jina/v1/embeddings", {"input": []}, 400, OPENAI_ERROR),
    Refusal("llama-server", "/embedding", {"content": ""}, 400, LLAMA_ERROR),
    Refusal("llama-server", "/embedding", {"content": "a", "model": "x"}, 404, LLAMA_ERROR),
    Refusal("llama-server", "/llama-server/v1/embeddings", {"input": []}, 400, LLAMA_ERROR),
    Refusal("ollama", "/api/embed", {"model": "x", "input": "a"}, 404, {"error": "m"}),
    Refusal("ollama", "/api/embed", {"input": LONG, "truncate": False}, 400, {"error": "m"}),
    Refusal("ollama", "/api/embed", {"input": [1]}, 400, {"error": "m"}),
    Refusal("tei", "/embed", {"inputs": []}, 400, TEI_ERROR),
    Refusal("tei", "/embed", {"inputs": ["a", ""]}, 400, TEI_ERROR),
    Refusal("tei", "/embed", {"inputs": LONG}, 413, TEI_ERROR),
    Refusal("tei", "/embed", {"inputs": ["a"] * 33}, 413, TEI_ERROR),
    Refusal("tei", "/embed", {"inputs": 5}, 422, TEI_ERROR),
    Refusal("tei", "/tei/v1/embeddings", {"input": []}, 400, TEI_ERROR),
    Refusal("cohere", "/v2/embed", {"texts": ["a"], "input_type": "x"}, 400, {"message": "m"}),
    Refusal("cohere", "/v2/rerank", {"query": "a", "documents": ["b"], "top_k": 1}, 422, {"message": "m"}),
    Refusal("voyage", "/v1/embeddings", {"input": "a", "truncation": True, "dimensions": 64}, 400, {"detail": "m"}),
    Refusal("vllm", "/pooling", {"input": []}, 400, VLLM_ERROR),
    Refusal("vllm", "/vllm/v1/embeddings", {"input": []}, 400, VLLM_ERROR),
]
