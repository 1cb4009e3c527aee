"""What runs on a worker. Nothing here imports `jobs`; only engine/ imports torch and diffusers."""
