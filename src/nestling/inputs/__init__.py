"""From a caller's inputs to an engine's: texts to token ids, documents to chunks, images to patches."""
