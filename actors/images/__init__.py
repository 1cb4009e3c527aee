"""Image files: those of the input, and those of the output."""
