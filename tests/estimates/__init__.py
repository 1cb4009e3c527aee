"""Tests of speeds, and of the time and the money that a plan expects."""
