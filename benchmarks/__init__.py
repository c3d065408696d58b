"""Benchmarks: tables of ratios, each measured in one run; see ``benchmarks/README.md``."""
