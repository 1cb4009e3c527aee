"""What is added to a checkpoint's modules: LoRAs, each row with its own."""
