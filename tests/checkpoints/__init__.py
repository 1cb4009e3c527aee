"""Facts about checkpoints: recognised, built, loaded and kept."""
