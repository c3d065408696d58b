"""Files that several processes write and read, on disks that fill up and fail."""
