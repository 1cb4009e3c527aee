"""Patches for faults of diffusers, transformers and torch: a file goes once upstream mends its fault."""
