"""Clients of Ollama's API."""

import asyncio
from typing import Any

from tests.contract.clients.table import DOCUMENTS, MODEL, PASSAGES, QUERY, Found, client, embedded, lancedb


@client("ollama", "Ollama", "ollama")
def ollama_client(url: str) -> Found:
    from ollama import Client as Ollama

    with Ollama(host=url) as ollama:
        old = ollama.embeddings(model="starter:latest", prompt=QUERY).embedding
        return {"query": old, "passages": ollama.embed(model=PASSAGES, input=DOCUMENTS).embeddings}


@client("ollama, async", "Ollama", "ollama")
def ollama_async(url: str) -> Found:
    from ollama import AsyncClient

    async def ask() -> Found:
        async with AsyncClient(host=url) as ollama:
            query = await ollama.embed(model=MODEL, input=QUERY)
            typed = [f"Passage: {text}" for text in DOCUMENTS]
            passages = await ollama.embed(model=MODEL, input=typed, truncate=True, options={"num_ctx": 2048})
            return {"query": query.embeddings[0], "passages": passages.embeddings}

    return asyncio.run(ask())


@client("langchain-ollama", "Ollama", "langchain-ollama", "ollama")
def langchain_ollama(url: str) -> Found:
    from langchain_ollama import OllamaEmbeddings

    def made(model: str) -> Any:
        return OllamaEmbeddings(base_url=url, model=model, validate_model_on_init=model == MODEL)

    return embedded(made(MODEL).embed_query, made(PASSAGES).embed_documents)


@client("llama-index, Ollama", "Ollama", "llama-index-embeddings-ollama")
def llama_index_ollama(url: str) -> Found:
    from llama_index.embeddings.ollama import OllamaEmbedding

    def made(model: str) -> Any:
        return OllamaEmbedding(model_name=model, base_url=url)

    return embedded(made(MODEL).get_query_embedding, made(PASSAGES).get_text_embedding_batch)


@client("haystack, Ollama", "Ollama", "ollama-haystack")
def haystack_ollama(url: str) -> Found:
    from haystack import Document
    from haystack_integrations.components.embedders.ollama import OllamaDocumentEmbedder, OllamaTextEmbedder

    documents = OllamaDocumentEmbedder(model=PASSAGES, url=url, progress_bar=False)
    found = documents.run([Document(content=text) for text in DOCUMENTS])["documents"]
    query = OllamaTextEmbedder(model=MODEL, url=url).run(QUERY)["embedding"]
    return {"query": query, "passages": [one.embedding for one in found]}


@client("chroma, Ollama", "Ollama", "chromadb", "ollama")
def chroma_ollama(url: str) -> Found:
    from chromadb.utils.embedding_functions import OllamaEmbeddingFunction as Made

    return embedded(lambda text: Made(url, MODEL)([text])[0], Made(url, PASSAGES))


@client("LanceDB, Ollama", "Ollama", "lancedb", "ollama")
def lancedb_ollama(url: str) -> Found:
    return lancedb("ollama", query={"name": MODEL}, passages={"name": PASSAGES}, host=url)
