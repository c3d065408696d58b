"""RED (Wu et al. 2024, arXiv 2402.15179): a learned scale and bias for each hidden unit."""

from heft_pipeline.adapters.red.settings import RedSettings as SETTINGS

__all__ = ["SETTINGS"]
