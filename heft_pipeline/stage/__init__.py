"""One stage from start to end, and what is checked before it."""
