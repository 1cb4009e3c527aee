"""Sweeps: lists of values and the rows of a table, multiplied into rows of Parquet."""
