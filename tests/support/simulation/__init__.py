"""Whole jobs in simulated time, and one long job under real faults."""
