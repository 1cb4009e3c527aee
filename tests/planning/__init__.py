"""Facts about the plan and the checks on rows."""
