"""Whether rows can have the adapters that they name: a file for each kind."""
