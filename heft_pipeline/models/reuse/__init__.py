"""Activations that no trained parameter can change, computed once."""
