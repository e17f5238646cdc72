"""What a caller hands in, made into what an engine takes: texts to token ids, chunks of a document."""
