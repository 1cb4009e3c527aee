"""Rows generated in this process, without Ray: a sample of a job, or one row again."""
