"""Facts about rows that are generated in one process: `darkroom try` and `darkroom replay`."""
