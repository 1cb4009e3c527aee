"""What is added to a checkpoint: LoRAs and ControlNets, each row with its own, and learned tokens."""
