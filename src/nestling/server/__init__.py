"""The HTTP server: OpenAI's embeddings API over loaded models. Entry: `server.process.run(settings)`."""
