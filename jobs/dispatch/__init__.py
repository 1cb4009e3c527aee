"""Which worker generates which shard. Of the code that runs in a job, only this folder imports Ray."""
