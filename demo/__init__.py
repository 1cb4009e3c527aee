"""The demo's input rows, and its checkpoints with random weights."""
