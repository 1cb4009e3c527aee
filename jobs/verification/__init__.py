"""Verification: whether an output keeps the row contract."""
