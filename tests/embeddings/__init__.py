"""Facts about embeddings: learned tokens, their files, and the rows that have them."""
