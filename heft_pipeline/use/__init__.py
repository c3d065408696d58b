"""Using what was trained: loading, predicting, evaluating, exporting and sharing it."""
