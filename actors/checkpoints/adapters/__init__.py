"""The files of adapters, and whether they fit their checkpoint."""
