"""Rows: how they are routed, checked, read and opened."""
