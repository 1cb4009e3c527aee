"""How long a job will take and what it will cost, from what was measured before."""
