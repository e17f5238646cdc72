"""From a checkpoint to one GGUF file per task: read, merge the task's LoRA adapter, write."""
