"""What lies in an output beside its images."""
