"""Clients of OpenAI's API."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.contract.clients.table import DOCUMENTS, KEY, MODEL, PASSAGES, QUERY, Found, client, embedded, lancedb


@client("langchain-openai", "OpenAI", "langchain-openai", "openai")
def langchain_openai(url: str) -> Found:
    return embedded(openai_langchain(url, MODEL).embed_query, openai_langchain(url, PASSAGES).embed_documents)


def openai_langchain(url: str, model: str, *, ids: bool = False) -> Any:
    """LangChain's client; `ids`: as it is by default, when it sends token ids of cl100k."""
    from langchain_openai import OpenAIEmbeddings

    return OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=KEY, model=model, max_retries=0, check_embedding_ctx_length=ids
    )


def cl100k() -> None:
    """Let tiktoken find the vocabulary that llama-index brings: it would fetch it."""
    import llama_index.core

    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache")


@client("langchain-openai, token ids refused", "OpenAI", "langchain-openai", "openai")
def langchain_refused(url: str) -> Found:
    from openai import BadRequestError

    cl100k()
    try:
        openai_langchain(url, MODEL, ids=True).embed_query(QUERY)
    except BadRequestError as error:
        if "check_embedding_ctx_length=False" not in str(error):
            raise
        return langchain_openai(url)
    raise AssertionError("token ids of another vocabulary were taken")


@client("langchain-openai, token ids read", "OpenAI", "langchain-openai", "openai", serve=("--token-input", "cl100k"))
def langchain_read(url: str) -> Found:
    cl100k()
    made = [openai_langchain(url, model, ids=True) for model in (MODEL, PASSAGES)]
    return embedded(made[0].embed_query, made[1].embed_documents)


@client("llama-index, OpenAI", "OpenAI", "llama-index-embeddings-openai-like")
def llama_index_openai(url: str) -> Found:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    def made(model: str) -> Any:
        return OpenAILikeEmbedding(model_name=model, api_base=f"{url}/v1", api_key=KEY)

    return embedded(made(MODEL).get_query_embedding, made(PASSAGES).get_text_embedding_batch)


@client("haystack, OpenAI", "OpenAI", "haystack-ai")
def haystack_openai(url: str) -> Found:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    common: dict[str, Any] = {"api_base_url": f"{url}/v1", "api_key": Secret.from_token(KEY)}
    documents = OpenAIDocumentEmbedder(**common, model=PASSAGES, progress_bar=False)
    found = documents.run([Document(content=text) for text in DOCUMENTS])["documents"]
    query = OpenAITextEmbedder(**common, model=MODEL).run(QUERY)["embedding"]
    return {"query": query, "passages": [one.embedding for one in found]}


@client("chroma, OpenAI", "OpenAI", "chromadb", "openai")
def chroma_openai(url: str) -> Found:
    from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

    def made(model: str) -> Any:
        return OpenAIEmbeddingFunction(api_key=KEY, api_base=f"{url}/v1", model_name=model)

    return embedded(lambda text: made(MODEL)([text])[0], made(PASSAGES))


@client("LanceDB, OpenAI", "OpenAI", "lancedb", "openai")
def lancedb_openai(url: str) -> Found:
    os.environ["OPENAI_API_KEY"] = KEY  # it keeps no key that is passed
    return lancedb("openai", query={"name": MODEL}, passages={"name": PASSAGES}, base_url=f"{url}/v1")


@client("qdrant-client, OpenAI", "OpenAI", "qdrant-client", "openai")
def qdrant(url: str) -> Found:
    from openai import OpenAI
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams

    with OpenAI(base_url=f"{url}/v1", api_key=KEY) as openai:

        def vectors(texts: Sequence[str], model: str) -> list[list[float]]:
            return [one.embedding for one in openai.embeddings.create(input=list(texts), model=model).data]

        found = embedded(lambda text: vectors([text], MODEL)[0], lambda texts: vectors(texts, PASSAGES))
    index = QdrantClient(":memory:")
    size = VectorParams(size=len(found["query"]), distance=Distance.COSINE)
    index.create_collection("documents", vectors_config=size)
    points = [PointStruct(id=place, vector=vector) for place, vector in enumerate(found["passages"])]
    index.upsert("documents", points)
    hits = index.query_points("documents", query=found["query"], limit=len(points)).points
    return {**found, "ranking": [hit.id for hit in hits]}


@client("txtai, external", "OpenAI", "txtai", "openai")
def txtai_external(url: str) -> Found:
    import numpy as np
    from openai import OpenAI
    from txtai import Embeddings

    def made(model: str) -> Any:
        def transform(texts: list[str]) -> Any:
            with OpenAI(base_url=f"{url}/v1", api_key=KEY) as openai:
                answer = openai.embeddings.create(input=list(texts), model=model)
            return np.array([one.embedding for one in answer.data], np.float32)

        return Embeddings(method="external", transform=transform)

    return embedded(made(MODEL).transform, made(PASSAGES).batchtransform)
