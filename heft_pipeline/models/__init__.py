"""The frozen base model: how it is loaded and run, and which activations are reused."""
