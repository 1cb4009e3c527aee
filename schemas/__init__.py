"""What crosses a boundary: YAML, Parquet, and messages between driver and worker."""
