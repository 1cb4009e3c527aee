"""Facts about what a job asks of a GPU, shown on a pretended one."""
