"""Training a stage's adapters: the loop, its checkpoints, and what it costs."""
