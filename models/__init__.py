"""Checkpoints that come with darkroom; each folder says in its README how it was trained."""
