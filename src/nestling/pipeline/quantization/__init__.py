"""Quantization of float files: file types, importance matrices, mixes of tensor types."""
