"""File formats: readers that check every length and limit, and writers. They do not know what a model is for."""
