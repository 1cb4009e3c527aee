"""Facts about workers and machines."""
