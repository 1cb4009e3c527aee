"""Words for people: amounts, hints, and the texts of strangers in messages."""
