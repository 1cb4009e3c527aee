"""Tests of inputs that are not Parquet, or are on the Hub."""
