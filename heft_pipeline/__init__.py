"""An experiment pipeline that compares LoRA, ReFT and HEFT (LoRA, then ReFT; arXiv 2509.09801)."""

__version__ = "0.1.0"
