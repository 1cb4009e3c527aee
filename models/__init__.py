"""Checkpoints that come with darkroom, and where they are built. Each folder says how it was trained."""
