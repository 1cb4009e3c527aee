"""Objects by URI, on local disk and on S3."""
