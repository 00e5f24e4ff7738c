"""Memory of a server: which epochs are in it, what lies on disk instead, and what ranks sent of super-batches."""
