"""Which worker makes which shard: the only home of Ray."""
