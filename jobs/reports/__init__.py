"""What people read about a job: contact sheet, summary, status and dataset card."""
