"""What a job runs on, and the names in Redis that follow from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from models.circuit import Circuit
from models.qasm import to_qasm2
from service.listening import is_loopback
from service.providers.base import ProviderName

APP = "qd"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Target:
    """One device at one provider.

    Attributes:
        endpoint: The provider's address, or `loopback` for every address of this machine: an emulator's port changes
            from start to start, and nothing on a loopback address is a chip.
    """

    provider: ProviderName
    endpoint: str
    device: str

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that no other target has."""
        return _sha256(asdict(self))[:12]

    @property
    def prefix(self) -> str:
        """Begins every key of this target's jobs; the braces keep them in one slot of a Redis Cluster."""
        return f"{APP}:v{SCHEMA_VERSION}:{{{self.id}}}:"


def target(provider: ProviderName, url: str | None, device: str) -> Target:
    """The target at a provider's URL; None is the provider's own."""
    if url is None:
        return Target(provider, "default", device)
    host = urlsplit(url).hostname or ""
    return Target(provider, "loopback" if is_loopback(host) else url.rstrip("/"), device)


def fingerprint(circuit: Circuit, shots: int, on: Target, layout: str, epoch: str = "") -> str:
    """What is equal exactly for circuits whose counts can stand in for one another; 64 hexadecimal digits.

    Args:
        circuit: Bound; its angles count to twelve decimals.
        shots: Shots in total.
        on: Where it runs.
        layout: How it is laid on the chip; see `service.hardware.placing`.
        epoch: Tells apart runs of one circuit that are meant to be repeated.
    """
    return _sha256([SCHEMA_VERSION, to_qasm2(circuit), shots, asdict(on), layout, epoch])


def counts_key(sha: str) -> str:
    """Where a circuit's counts are kept."""
    return f"{APP}:v{SCHEMA_VERSION}:{{{sha}}}:res"


def refusal_key(sha: str) -> str:
    """Where it is kept that the provider refuses a circuit."""
    return f"{APP}:v{SCHEMA_VERSION}:{{{sha}}}:err"


def angles_key(bundle: str, text: str) -> str:
    """Where a text's angles are kept; the text itself is stored nowhere."""
    return f"{APP}:v{SCHEMA_VERSION}:{{{_sha256([bundle, text])}}}:angles"


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
