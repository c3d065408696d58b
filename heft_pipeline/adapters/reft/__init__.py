"""LoReFT and its siblings (Wu et al. 2024, arXiv 2404.03592): pyreft's own interventions."""

from heft_pipeline.adapters.reft.settings import ReftSettings as SETTINGS

__all__ = ["SETTINGS"]
