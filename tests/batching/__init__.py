"""Facts about calls that run side by side."""
