"""Tasks: rows, prompts, and batches of token ids."""
