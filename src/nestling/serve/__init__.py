"""The HTTP server: OpenAI's embeddings API over loaded models."""
