"""Rows that are generated here and now, in this process and without Ray: a sample of a job, or one row again."""
