"""Checkpoints in memory, and the pipelines built from their components."""
