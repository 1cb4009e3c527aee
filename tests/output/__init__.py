"""Facts about what lies in an output."""
