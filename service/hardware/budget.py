"""What API keys may spend on hardware, by day (UTC)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_TTL_SECONDS = 2 * 86_400


@dataclass(frozen=True)
class Budget:
    """What an API key may spend.

    Attributes:
        key: Its id.
        shots_per_day: Most shots in a day (UTC) that it may bring into the queue.
    """

    key: str
    shots_per_day: int

    def today(self) -> dict[str, str | int]:
        """What the script that creates a job gets, to charge it to this day."""
        day = datetime.now(UTC).date().isoformat()
        return {"key": self.key, "day": day, "limit": self.shots_per_day, "ttl": _TTL_SECONDS}


class OverBudgetError(Exception):
    """A job's new circuits have more shots than its key has left today."""


def seconds_to_midnight() -> int:
    """Seconds until the budgets' next day (UTC) begins, at least 1."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return max(1, int((midnight - now).total_seconds()))
