"""One shard's outcomes as one committed file."""
