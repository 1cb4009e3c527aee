"""Facts about shards and workers."""
