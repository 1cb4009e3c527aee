"""Which worker gets which shard, and whose fault a failure is: pure state, without Ray."""
