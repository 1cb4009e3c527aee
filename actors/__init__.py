"""What runs on a worker. Nothing here imports `jobs`; torch and diffusers are imported nowhere else."""
