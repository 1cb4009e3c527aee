"""Facts about the whole program."""
