"""Measurements that anyone can run: each module prints the table that stands in docs/benchmarks.md."""
