"""What computes a stage: devices, their memory, and processes that share a stage."""
