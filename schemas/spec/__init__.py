"""The job's YAML as types."""
