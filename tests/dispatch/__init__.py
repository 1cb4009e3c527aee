"""Facts about shards, and whole jobs in simulated time."""
