"""The survey: what a job's input, models and routes are, known from footers and configurations alone."""
