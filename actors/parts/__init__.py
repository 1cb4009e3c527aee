"""A shard's outcomes as one committed file: its part."""
