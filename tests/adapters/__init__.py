"""Facts about adapters: LoRAs, each row with its own."""
