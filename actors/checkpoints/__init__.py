"""Checkpoints, recognised and checked by their files alone, without torch."""
