"""An experiment pipeline that compares LoRA, ReFT and HEFT (LoRA, then ReFT; arXiv 2509.09801)."""

from heft_pipeline.command_line.interrupts import guard_start

__version__ = "0.1.0"

guard_start()
