"""What a caller can ask to run a circuit: one file per backend, behind `Backend`."""
