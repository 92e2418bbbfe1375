"""A search for the configuration whose student is best on validation texts."""
