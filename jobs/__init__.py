"""What runs on the driver: the command line, plan, dispatch and reports. Nothing here imports torch."""
