"""Rows of every system, and what plain diffusers generates for them."""
