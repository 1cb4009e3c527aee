"""Pipeline calls side by side, and the modules that are asked for several of them at once."""
