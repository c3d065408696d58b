"""Executing a plan: composing jobs, running their stages here or on SLURM, looking after them."""

from heft_pipeline.command_line.interrupts import guard_start

guard_start()
