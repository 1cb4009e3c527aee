"""A benchmark of a GPU in one sitting: the lines of its table, within a budget of time."""
