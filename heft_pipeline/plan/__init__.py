"""From settings to runs, and from runs to the unique stages that they stand on."""
