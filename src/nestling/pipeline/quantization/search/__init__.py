"""Search for a mix of tensor types: perturbation probe, bit allocation, recipe files."""
