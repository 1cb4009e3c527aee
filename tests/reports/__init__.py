"""What people read of a job: its figures on every surface, and the files that are written when it is done."""
