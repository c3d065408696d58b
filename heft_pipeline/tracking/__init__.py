"""Showing runs elsewhere: Weights & Biases and TensorBoard.

The store's files are the source of truth. A process of its own reads them and sends what they
say (``python -m heft_pipeline.tracking SWEEP``), so that training neither waits for a tracker nor
fails with it, and what was not sent can be sent later. Knows nothing of torch.

- ``runs``: what there is to send of a run, read from a sweep's files
- ``backend``: what a tracker must be able to do
- ``wandb_backend``, ``tensorboard_backend``: the two trackers
- ``account``: whether W&B is to be reached from here
- ``send``: one run to one tracker, once
- ``follow``: all runs of a sweep, while they are trained
- ``__main__``: the command line
"""
