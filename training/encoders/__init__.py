"""Encoders that are trained whole: classical teachers of one task, and the one encoder that is adapted to all tasks."""
