"""The columns of the input and of the output."""
