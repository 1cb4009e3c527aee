"""What crosses a boundary: YAML, Parquet, and messages between driver and worker."""

__version__ = "0.1.0"
"""Here and not in the installed metadata: a Ray job ships darkroom's code to machines that lack it."""
