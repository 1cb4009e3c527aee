"""The engine turns opened rows into pixels. Of the code that runs in a job, only it imports torch."""
