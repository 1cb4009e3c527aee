"""A real S3 server, and a proxy that makes it fail."""
