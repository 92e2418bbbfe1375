"""Every error that `models` raises on purpose.

StudentError
├── CircuitError            a gate, parameter or preset that cannot be built, bound or exported
│   └── UnboundParameterError   an angle was needed and is still symbolic
├── QasmError               OpenQASM text that cannot be read
├── DeviceError             a calibration that cannot be read, or a circuit or chain that does not fit the device
├── ShapeError              an array whose shape does not fit the student
├── EngineError             an engine that cannot evaluate this circuit here
├── EmptyCountsError        counts without a single shot
├── ReadoutError            readout errors too large to be corrected
├── EmbedderError           an embedder folder or a text that cannot be embedded
├── FolderError             a folder that must not be replaced
└── BundleError             a bundle that must not be served
    ├── BundleFileError         a file is missing, truncated or altered
    └── BundleSchemaError       a manifest or circuit this version cannot read
"""

from __future__ import annotations


class StudentError(Exception):
    """Base of every error that `models` raises on purpose."""


class CircuitError(StudentError):
    """A gate, parameter or preset that cannot be built, bound or exported."""


class UnboundParameterError(CircuitError):
    """An angle was needed as a number and is still symbolic."""


class QasmError(StudentError):
    """OpenQASM text that cannot be read; names the line."""


class DeviceError(StudentError):
    """A calibration that cannot be read, or a circuit or chain that does not fit the device."""


class ShapeError(StudentError):
    """An array whose shape does not fit the student; says expected and found."""


class EngineError(StudentError):
    """An engine that cannot evaluate this circuit here."""


class EmptyCountsError(StudentError):
    """Measured counts without a single shot."""


class ReadoutError(StudentError):
    """Readout errors too large to be corrected."""


class EmbedderError(StudentError):
    """An embedder folder that cannot be loaded, or a text it cannot embed."""


class FolderError(StudentError):
    """A folder that must not be replaced: it holds something else."""


class BundleError(StudentError):
    """A bundle that must not be served."""


class BundleFileError(BundleError):
    """A bundle file that is missing, truncated or altered; names the file."""


class BundleSchemaError(BundleError):
    """A manifest or circuit whose schema this version cannot read."""
