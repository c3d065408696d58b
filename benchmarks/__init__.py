"""Benchmarks, which print tables of ratios measured in one run; see ``benchmarks/README.md``."""
