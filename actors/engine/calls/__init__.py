"""One call of a diffusers pipeline: its arguments and its outputs."""
