"""Facts about a worker and its engine."""
