"""One call of a diffusers pipeline: what it is given, and what it gives."""
