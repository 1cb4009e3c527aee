"""Faults of diffusers, transformers and torch that are gone round: each file goes when upstream mends it."""
