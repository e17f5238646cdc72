"""Engines: token ids in, one pooled vector per text out. They know nothing of texts, prefixes or tasks."""
