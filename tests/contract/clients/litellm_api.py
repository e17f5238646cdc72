"""LiteLLM with each of its providers that has an address of its own, and txtai through it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.contract.clients.table import DOCUMENTS, KEY, MODEL, PASSAGES, QUERY, Found, client, embedded


@client("txtai, litellm", "Ollama", "txtai", "litellm")
def txtai_litellm(url: str) -> Found:
    from txtai import Embeddings

    def made(model: str) -> Any:
        return Embeddings(path=f"ollama/{model}", method="litellm", vectors={"api_base": url})

    return embedded(made(MODEL).transform, made(PASSAGES).batchtransform)


@dataclass(frozen=True, slots=True)
class Provider:
    """One of LiteLLM's: the API that it speaks, its address behind the server's, and how it names the roles.

    `typed`: it names none, so the prefix is written into the texts. `rerank`: the address for a ranking.
    """

    api: str
    path: str
    query: dict[str, Any]
    passages: dict[str, Any]
    typed: bool = False
    rerank: str | None = None


BY_NAME: dict[str, Any] = {"query": {"model": MODEL}, "passages": {"model": PASSAGES}}
EMBED = {"input_type": "embed"}  # or it would ask the hub what the model is for
PROVIDERS = {
    "openai": Provider("OpenAI", "/v1", **BY_NAME),
    "ollama": Provider("Ollama", "", **BY_NAME),
    "cohere": Provider(
        "Cohere", "/v2/embed", {"input_type": "search_query"}, {"input_type": "search_document"}, rerank="/v2/rerank"
    ),
    "voyage": Provider(  # its rerank sends no field that Jina's has not
        "Voyage", "/v1/embeddings", {"input_type": "query"}, {"input_type": "document"}, rerank="/voyage/v1/rerank"
    ),
    "jina_ai": Provider(
        "Jina", "/v1/embeddings", {"task": "retrieval.query"}, {"task": "retrieval.passage"}, rerank="/v1/rerank"
    ),
    "huggingface": Provider("Text Embeddings Inference", "", EMBED, EMBED, typed=True, rerank=""),
    "hosted_vllm": Provider("vLLM", "/v1", **BY_NAME, rerank="/v1"),
    "infinity": Provider("infinity", "", **BY_NAME, rerank=""),
    "lm_studio": Provider("OpenAI", "/v1", **BY_NAME),
    "llamafile": Provider("llama-server", "/v1", **BY_NAME),
}


def with_provider(name: str) -> Callable[[str], Found]:
    """LiteLLM with one provider."""
    provider = PROVIDERS[name]
    documents = [f"Passage: {text}" for text in DOCUMENTS] if provider.typed else DOCUMENTS

    def vectors(url: str, texts: list[str], *, model: str = MODEL, **said: Any) -> Any:
        import litellm

        place = url + provider.path
        answer = litellm.embedding(model=f"{name}/{model}", input=texts, api_base=place, api_key=KEY, **said)
        return [one["embedding"] for one in answer.data]

    def run(url: str) -> Found:
        query = vectors(url, [QUERY], **provider.query)[0]
        found = {"query": query, "passages": vectors(url, documents, **provider.passages)}
        return found if provider.rerank is None else {**found, "ranking": ranking(name, url + provider.rerank)}

    return run


def ranking(name: str, place: str) -> list[int]:
    """The documents' order by the same provider."""
    import litellm

    answer = litellm.rerank(
        model=f"{name}/{MODEL}",
        query=QUERY,
        documents=DOCUMENTS,
        api_base=place,
        api_key=KEY,
        return_documents=False,  # infinity's are texts, here they are objects with a text, as Jina's
    )
    return [one["index"] for one in answer.results]


for _name, _provider in PROVIDERS.items():
    client(f"LiteLLM, {_name}", _provider.api, "litellm")(with_provider(_name))
