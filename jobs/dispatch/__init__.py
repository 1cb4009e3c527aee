"""Which worker generates which shard: the only folder that imports Ray."""
