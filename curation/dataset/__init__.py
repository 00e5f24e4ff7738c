"""Finished datasets: what a run leaves behind, read and checked."""
