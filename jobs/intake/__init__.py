"""The intake: input files that are not Parquet, or are on the Hub, as the Parquet files that are read."""
