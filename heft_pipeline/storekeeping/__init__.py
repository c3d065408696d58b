"""Keeping a store: what is in it, whether it is whole, what can go, and what made what."""
