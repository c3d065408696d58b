"""What is trained on a frozen model; a folder for each kind of adapter."""
