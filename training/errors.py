"""Every error that `training` raises on purpose.

TrainingError
├── DataError        a text file that cannot be learned from; names file and row
├── ConfigError      a run configuration that cannot be run; names the field
├── PackagedFileError a model that the package registry should have brought
├── TeacherError     a teacher that cannot be loaded, tuned or read from the cache
├── EncoderError     an encoder that cannot be found, or that no classifier can be made of
├── CheckpointError  a file that a run cannot go on from
├── DivergedError    a loss that is no longer a number; names epoch and step
└── StudyError       a cell of the study whose system or files are not what they should be
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of every error that `training` raises on purpose."""


class DataError(TrainingError):
    """Texts that cannot be learned from; names the file and, where there is one, the row."""


class ConfigError(TrainingError):
    """A run configuration that cannot be run; names the field."""


class PackagedFileError(TrainingError):
    """A model that the package registry should have brought is missing or another one."""


class TeacherError(TrainingError):
    """A teacher that cannot be loaded, fine-tuned or read from the cache."""


class EncoderError(TrainingError):
    """An encoder that cannot be found, or that no classifier can be made of."""


class CheckpointError(TrainingError):
    """A file that a run cannot go on from; names it."""


class DivergedError(TrainingError):
    """A loss that is no longer a number; names epoch and step."""


class StudyError(TrainingError):
    """A cell of the study whose system answers wrongly or whose files cannot be read."""
