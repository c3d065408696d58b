"""Executing stages on a SLURM cluster, through submitit."""
