"""How good and how fast is a model: benchmarks, measures, result files and the report drawn from them."""
