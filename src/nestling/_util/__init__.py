"""Helpers that all layers share: files, memory, optional packages. Internal."""
