"""The HTTP dialects: request bodies, routes and responses."""
