"""What crosses a boundary: YAML, Parquet, and messages between driver and worker."""

__version__ = "0.1.0"
"""darkroom's version. It is in the code, because a Ray job ships the code to machines without the package."""
