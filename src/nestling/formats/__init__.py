"""File formats: read and written, bounded and checked. They know nothing of what a model is for."""
