"""Pipelines to compare with: plain diffusers, and toys that are quick."""
