"""Facts about reading the input and the images that its rows name."""
