"""What people read of a job: the contact sheet, the summary, the status, the data set's card."""
