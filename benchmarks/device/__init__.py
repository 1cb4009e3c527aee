"""What a device could do, and what a run does to it."""
