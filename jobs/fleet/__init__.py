"""The workers of a job on a Ray cluster. Of the code that runs in a job, only this folder imports Ray."""
