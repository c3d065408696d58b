"""Show runs elsewhere: in Weights & Biases, TensorBoard, Trackio and MLflow.

The store's files are the source of truth. A separate process reads them and sends their content
(``python -m heft_pipeline.tracking SWEEP``), so that training neither waits for a tracker nor
fails with it, and what was not sent can be sent later. Nothing here needs torch.

- ``payload``: what there is to send of a run, read from a sweep's files
- ``backend``: what a tracker must be able to do
- ``wandb_backend``, ``tensorboard_backend``, ``trackio_backend``, ``mlflow_backend``: the trackers
- ``wandb_account``: whether W&B can be used from here
- ``send``: sends one run to one tracker, once
- ``follow``: sends all runs of a sweep, while they are trained
- ``summary``: what the terminal says about it
- ``__main__``: the command line
"""
