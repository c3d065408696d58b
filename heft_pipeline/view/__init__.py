"""A local web view of sweeps: what runs, what came of it, and every stage's curves and answers.

It reads the store's files alone and writes none, needs no account, and imports no torch.
"""
