"""HTTP: bodies, limits, problem documents, and what the routes share."""
