"""Tests of the spec that `darkroom init` writes."""
