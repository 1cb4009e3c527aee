"""The contact sheet: a page with a sample of the images."""
