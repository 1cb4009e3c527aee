"""Planted mistakes: each is a change of one place in the code that a test must notice."""
