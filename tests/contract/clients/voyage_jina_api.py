"""Clients of Voyage's and Jina's APIs."""

import asyncio
from typing import Any

from tests.contract.clients.table import DOCUMENTS, KEY, MODEL, QUERY, Found, client, embedded


@client("voyageai", "Voyage", "voyageai")
def voyage(url: str) -> Found:
    import voyageai

    vo = voyageai.Client(api_key=KEY, base_url=f"{url}/v1")
    ranked = vo.rerank(QUERY, DOCUMENTS, model=MODEL).results
    found = embedded(
        lambda text: vo.embed([text], model=MODEL, input_type="query").embeddings[0],
        lambda texts: vo.embed(texts, model=MODEL, input_type="document").embeddings,
    )
    return {**found, "ranking": [one.index for one in ranked]}


@client("voyageai, async", "Voyage", "voyageai")
def voyage_async(url: str) -> Found:
    import voyageai

    async def ask() -> Found:
        vo = voyageai.AsyncClient(api_key=KEY, base_url=f"{url}/v1")
        query = await vo.embed([QUERY], model=MODEL, input_type="query")
        passages = await vo.embed(DOCUMENTS, model=MODEL, input_type="document")
        return {"query": query.embeddings[0], "passages": passages.embeddings}

    return asyncio.run(ask())


@client("llama-index, Jina", "Jina", "llama-index-embeddings-jinaai")
def llama_index_jina(url: str) -> Found:
    from llama_index.embeddings.jinaai import JinaEmbedding

    def made(task: str) -> Any:
        jina = JinaEmbedding(api_key=KEY, model=MODEL, task=task)
        jina._api.api_url = f"{url}/v1/embeddings"  # it has no setting for it
        return jina

    return embedded(made("retrieval.query").get_query_embedding, made("retrieval.passage").get_text_embedding_batch)


@client("haystack, Jina", "Jina", "jina-haystack")
def haystack_jina(url: str) -> Found:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.jina import JinaDocumentEmbedder, JinaTextEmbedder

    common: dict[str, Any] = {"api_key": Secret.from_token(KEY), "model": MODEL, "base_url": f"{url}/v1/embeddings"}
    documents = JinaDocumentEmbedder(**common, task="retrieval.passage", progress_bar=False)
    found = documents.run([Document(content=text) for text in DOCUMENTS])["documents"]
    query = JinaTextEmbedder(**common, task="retrieval.query").run(QUERY)["embedding"]
    return {"query": query, "passages": [one.embedding for one in found]}


@client("chroma, Jina", "Jina", "chromadb")
def chroma_jina(url: str) -> Found:
    from chromadb.utils.embedding_functions import JinaEmbeddingFunction

    def made(task: str) -> Any:
        jina = JinaEmbeddingFunction(api_key=KEY, model_name=MODEL, task=task)
        jina._api_url = f"{url}/v1/embeddings"  # it has no setting for it
        return jina

    return embedded(lambda text: made("retrieval.query")([text])[0], made("retrieval.passage"))
