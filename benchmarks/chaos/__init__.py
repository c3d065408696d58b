"""A sweep under everything that happens to sweeps; what it ends with is what it would have."""
