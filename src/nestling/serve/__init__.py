"""The HTTP server: OpenAI's embeddings API over loaded models.

Entry: `nestling.serve.run.run(nestling.serve.settings.read_settings(flags))`. Importing this package loads nothing.
"""
