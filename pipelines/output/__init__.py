"""The output of runs: shards, decisions, manifest."""
