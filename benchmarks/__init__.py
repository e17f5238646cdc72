"""Benchmarks: never gates; each writes its result with machine and commit into `results/`."""
