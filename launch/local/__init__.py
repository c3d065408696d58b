"""Executing stages on this machine."""
