"""Facts about the YAML and about the columns of both tables."""
