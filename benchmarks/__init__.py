"""Measurements that anyone can run: each module prints a table of docs/benchmarks.md."""
