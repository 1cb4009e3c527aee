"""How fast a device could be, and how a run uses it."""
