"""Rows: routed, checked, read and opened."""
