"""The GPU engine: the text tower in PyTorch, for CUDA, ROCm, MPS and XPU devices, and for tests on the CPU."""
