"""What can be generated: systems, their parameters and schedulers, and the facts about a checkpoint."""
