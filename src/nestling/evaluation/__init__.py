"""Measure quality and speed of models: benchmarks, metrics, result files and the report."""
