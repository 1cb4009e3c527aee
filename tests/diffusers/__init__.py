"""Facts about what diffusers makes of the same rows."""
