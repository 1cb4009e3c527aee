"""Facts about the benchmarks for GPUs, as far as a machine without one can tell."""
