"""The first spec of a job: its input read, its task told from the columns, and its YAML written."""
