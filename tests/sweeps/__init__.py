"""Facts about sweeps: which rows they become, and what is refused."""
