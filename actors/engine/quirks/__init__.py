"""Workarounds for faults of diffusers, transformers and torch: a file goes once upstream fixes its fault."""
