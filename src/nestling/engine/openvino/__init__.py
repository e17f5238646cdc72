"""The OpenVINO engine: our own graph of a GGUF file, on the CPU."""
