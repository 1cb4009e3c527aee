"""Checkpoints that are one file: what their header tells, and the configuration that it lacks."""
