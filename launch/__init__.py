"""Executing a plan: composing jobs, running their stages here or on SLURM, looking after them."""
