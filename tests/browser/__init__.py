"""Facts about the contact sheet in a real browser."""
