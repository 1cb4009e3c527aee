"""Checkpoints that come with darkroom, and where they are built; shapes/README.md explains their training."""
