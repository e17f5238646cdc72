"""From a checkpoint to one GGUF file a task: reading, merging an adapter, writing."""
