"""The endpoints, one file for each thing a caller asks about."""
