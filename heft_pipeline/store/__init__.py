"""The files that outlive a process: stages by fingerprint, and sweeps."""
