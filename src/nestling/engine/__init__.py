"""Engines: token ids in, one pooled vector a text out. They know nothing of texts, prefixes or tasks."""
