"""What a task's requests run on where they do not name a backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from pydantic import AwareDatetime, Field, ValidationError

from service.hardware.records import Record
from service.metrics import Metrics
from service.settings import BackendName


class Switch(Record):
    """The default backend of a task.

    Attributes:
        shadow_percent: How many of 100 requests that `simulator` answers by default are run on `baihua` too.
        since: When it was set; None if no operator has.
        by: Id of the API key that set it, or `open` for a caller without one.
    """

    backend: BackendName
    shadow_percent: float = Field(default=0.0, ge=0.0, le=100.0, allow_inf_nan=False)
    since: AwareDatetime | None = None
    by: str | None = None


class Switches:
    """The switch of every task, as this replica knows it.

    Args:
        default: Backend of the tasks that no operator has switched.
    """

    def __init__(self, default: BackendName) -> None:
        self._unset = Switch(backend=default)
        self._switches: Mapping[str, Switch] = {}

    def of(self, task: str) -> Switch:
        """The switch of a task."""
        return self._switches.get(task, self._unset)

    def is_set(self, task: str) -> bool:
        """Whether an operator's switch is in effect, and not the settings."""
        return task in self._switches

    def replace(self, switches: Mapping[str, Switch]) -> None:
        """Let these be in effect and no others."""
        self._switches = dict(switches)

    def set(self, task: str, switch: Switch) -> None:
        """Let this be in effect for a task."""
        self._switches = {**self._switches, task: switch}

    def show(self, metrics: Metrics, tasks: Iterable[str]) -> None:
        """Make the gauges say what is in effect for these tasks and no others."""
        metrics.default_backend.clear()
        metrics.shadow_ratio.clear()
        for task in tasks:
            switch = self.of(task)
            for backend in BackendName:
                metrics.default_backend.labels(task, backend.value).set(backend is switch.backend)
            metrics.shadow_ratio.labels(task).set(switch.shadow_percent / 100)


def parse_switches(raw: Mapping[str, str]) -> dict[str, Switch]:
    """The switches of the hash `keyspace.BACKENDS`; one that cannot be read counts as none."""
    found = {}
    for task, record in raw.items():
        with suppress(ValidationError):
            found[task] = Switch.model_validate_json(record)
    return found
