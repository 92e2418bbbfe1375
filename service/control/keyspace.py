"""Every key of the control data, in one slot of a Redis Cluster. A Redis database serves one deployment."""

from __future__ import annotations

from typing import Final

from service.hardware.target import APP, SCHEMA_VERSION

_PREFIX = f"{APP}:v{SCHEMA_VERSION}:{{control}}:"

KEYS: Final = f"{_PREFIX}keys"
"""Hash: id of an API key to its record."""
BACKENDS: Final = f"{_PREFIX}backends"
"""Hash: task to its switch."""
BUNDLES: Final = f"{_PREFIX}bundles"
"""Integer: how often bundles were loaded anew; replicas that see another number load theirs."""
AUDIT: Final = f"{_PREFIX}audit"
"""List: what was changed, the newest first."""
