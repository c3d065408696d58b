"""Training one adapter: the loop, its checkpoints, and what it costs."""
