"""Whether an output keeps the row contract."""
