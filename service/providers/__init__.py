"""Whose API reaches the chip: one file per provider, behind `Provider`."""
