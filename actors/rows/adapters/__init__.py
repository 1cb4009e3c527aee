"""Whether rows can have the adapters that they name, such as LoRAs: a file for each kind."""
