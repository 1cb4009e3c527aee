"""What can be generated: systems, their parameters and schedulers, and what is known of a checkpoint."""
