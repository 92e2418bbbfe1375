"""Serves distilled students over HTTP. Imports `models`, never `training`."""
