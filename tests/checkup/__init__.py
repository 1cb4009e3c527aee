"""Tests of the checks of `darkroom doctor`."""
