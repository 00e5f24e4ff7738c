"""The engine of runs: Ray, and the folder of an unfinished run."""
