"""Clients of Cohere's API, v1 and v2."""

import os
from typing import Any

from tests.contract.clients.table import DOCUMENTS, KEY, MODEL, QUERY, Found, client, embedded, lancedb


@client("cohere, v2", "Cohere", "cohere")
def cohere_v2(url: str) -> Found:
    import cohere

    with cohere.ClientV2(api_key=KEY, base_url=url) as co:

        def vectors(texts: list[str], kind: str) -> Any:
            answer = co.embed(model=MODEL, texts=texts, input_type=kind, embedding_types=["float"])
            return answer.embeddings.float_

        ranked = co.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS).results
        found = embedded(lambda text: vectors([text], "search_query")[0], lambda all_: vectors(all_, "search_document"))
        return {**found, "ranking": [one.index for one in ranked]}


@client("cohere, v1", "Cohere", "cohere")
def cohere_v1(url: str) -> Found:
    import cohere

    with cohere.Client(api_key=KEY, base_url=url) as co:

        def vectors(texts: list[str], kind: str) -> Any:
            return co.embed(model=MODEL, texts=texts, input_type=kind).embeddings

        ranked = co.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS).results
        found = embedded(lambda text: vectors([text], "search_query")[0], lambda all_: vectors(all_, "search_document"))
        return {**found, "ranking": [one.index for one in ranked]}


@client("langchain-cohere", "Cohere", "langchain-cohere", "cohere")
def langchain_cohere(url: str) -> Found:
    from langchain_cohere import CohereEmbeddings

    co = CohereEmbeddings(base_url=url, cohere_api_key=KEY, model=MODEL)
    return embedded(co.embed_query, co.embed_documents)


COHERES = "embed-english-v3.0"


@client("llama-index, Cohere", "Cohere", "llama-index-embeddings-cohere", "cohere", serve=("--alias", COHERES))
def llama_index_cohere(url: str) -> Found:
    from llama_index.embeddings.cohere import CohereEmbedding

    co = CohereEmbedding(api_key=KEY, base_url=url, model_name=COHERES)  # it takes names of Cohere's alone
    return embedded(co.get_query_embedding, co.get_text_embedding_batch)


@client("haystack, Cohere", "Cohere", "cohere-haystack", "cohere")
def haystack_cohere(url: str) -> Found:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.cohere import CohereDocumentEmbedder, CohereTextEmbedder
    from haystack_integrations.components.rankers.cohere import CohereRanker

    common: dict[str, Any] = {"api_key": Secret.from_token(KEY), "model": MODEL, "api_base_url": url}
    documents = [Document(content=text) for text in DOCUMENTS]
    found = CohereDocumentEmbedder(**common, input_type="search_document", progress_bar=False).run(documents)
    query = CohereTextEmbedder(**common, input_type="search_query").run(QUERY)["embedding"]
    ranked = CohereRanker(**common).run(query=QUERY, documents=documents)["documents"]
    return {
        "query": query,
        "passages": [one.embedding for one in found["documents"]],
        "ranking": [DOCUMENTS.index(one.content) for one in ranked],
    }


@client("chroma, Cohere", "Cohere", "chromadb", "cohere")
def chroma_cohere(url: str) -> Found:
    from chromadb.utils.embedding_functions import CohereEmbeddingFunction

    name_address(url)
    return {"passages": CohereEmbeddingFunction(api_key=KEY, model_name=MODEL)(DOCUMENTS)}


@client("LanceDB, Cohere", "Cohere", "lancedb", "cohere")
def lancedb_cohere(url: str) -> Found:
    name_address(url)
    return lancedb("cohere", query={"name": MODEL}, passages={"name": MODEL})


def name_address(url: str) -> None:
    """Set the variables by which Cohere's client learns another address, and its callers a key."""
    os.environ |= {"CO_API_URL": url, "CO_API_KEY": KEY, "COHERE_API_KEY": KEY}
