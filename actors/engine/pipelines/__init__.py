"""Checkpoints in memory, and pipelines put together from their components."""
