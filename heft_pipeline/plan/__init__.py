"""Turning settings into runs, and runs into the unique stages that they need."""
