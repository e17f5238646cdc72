"""From a jina-embeddings-v4 checkpoint to a GGUF file: read, cut, merge, convert, quantize."""
