"""Facts about storage, the commit of a part, and the lease."""
