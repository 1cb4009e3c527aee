"""Facts about IP-Adapters: each row is shown a picture of its own."""
