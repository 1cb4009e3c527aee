"""Pipeline calls that run side by side, and the modules whose calls are merged."""
