"""What a checkpoint is, told from its files; torch is not needed."""
