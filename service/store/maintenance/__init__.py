"""Maintenance of a store: copies, free space, a look whether all fits together, and what removes large things."""
