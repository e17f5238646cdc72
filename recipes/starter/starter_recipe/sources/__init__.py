"""Readers of the fetched packages: each turns files into records and knows nothing of the benchmarks."""
