"""Words for people: amounts, hints, and texts of unknown origin in messages."""
