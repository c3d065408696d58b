"""The adapters that are trained on a frozen model, with a folder for each kind."""
