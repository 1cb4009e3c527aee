"""The plan: what a job will do, known before anything is paid for."""
