"""Flat on purpose: a folder tests/schemas would be imported in place of the package `schemas`."""
