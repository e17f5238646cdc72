"""Clients of Text Embeddings Inference."""

from typing import Any

from tests.contract.clients.table import DOCUMENTS, KEY, MODEL, QUERY, Found, client, embedded


@client("huggingface_hub", "Text Embeddings Inference", "huggingface-hub")
def huggingface_hub(url: str) -> Found:
    from huggingface_hub import InferenceClient

    tei = InferenceClient(model=url)
    return embedded(
        lambda text: tei.feature_extraction(text)[0],
        lambda texts: [tei.feature_extraction(text, prompt_name="passage")[0] for text in texts],
    )


@client("langchain-huggingface", "Text Embeddings Inference", "langchain-huggingface")
def langchain_huggingface(url: str) -> Found:
    from huggingface_hub import InferenceClient
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    def made(**more: Any) -> Any:
        tei = HuggingFaceEndpointEmbeddings(model=MODEL, huggingfacehub_api_token=KEY, **more)
        tei.client = InferenceClient(model=url)  # as a model it takes no address any more
        return tei

    return embedded(made().embed_query, made(model_kwargs={"prompt_name": "passage"}).embed_documents)


@client("llama-index, TEI", "Text Embeddings Inference", "llama-index-embeddings-text-embeddings-inference")
def llama_index_tei(url: str) -> Found:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    tei = TextEmbeddingsInference(model_name=MODEL, base_url=url, text_instruction="Passage:")
    return embedded(tei.get_query_embedding, tei.get_text_embedding_batch)


@client("haystack, TEI", "Text Embeddings Inference", "huggingface-api-haystack")
def haystack_tei(url: str) -> Found:
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import (
        HuggingFaceAPIDocumentEmbedder,
        HuggingFaceAPITextEmbedder,
    )

    place: dict[str, Any] = {"api_type": "text_embeddings_inference", "api_params": {"url": url}, "normalize": True}
    documents = HuggingFaceAPIDocumentEmbedder(**place, prefix="Passage: ", progress_bar=False)
    found = documents.run([Document(content=text) for text in DOCUMENTS])["documents"]
    query = HuggingFaceAPITextEmbedder(**place).run(QUERY)["embedding"]
    return {"query": query, "passages": [one.embedding for one in found]}


@client("chroma, TEI", "Text Embeddings Inference", "chromadb")
def chroma_tei(url: str) -> Found:
    from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer

    tei = HuggingFaceEmbeddingServer(f"{url}/embed")
    return embedded(lambda text: tei([text])[0], lambda texts: tei([f"Passage: {text}" for text in texts]))
