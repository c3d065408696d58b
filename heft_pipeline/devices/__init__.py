"""What computes: devices, their memory, and processes that share a stage."""
