"""LoRA (Hu et al. 2021, arXiv 2106.09685) and its variants, through PEFT."""

from heft_pipeline.adapters.lora.settings import LoraSettings as SETTINGS

__all__ = ["SETTINGS"]
