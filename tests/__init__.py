"""Tests, in folders as the house has them; what they share is in support/."""
