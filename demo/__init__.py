"""What the demo is made of: its rows, and its checkpoints with random weights."""
