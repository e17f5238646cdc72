"""The search for a mix of tensor types: probing, allocating bits, the recipe that keeps the result."""
