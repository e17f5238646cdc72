"""HTTP around the service: limits, keys, log, problems, metrics."""
